//! On whose behalf an upstream is asked.

use std::fmt;
use std::sync::Arc;

use super::credential::Login;

/// Somebody whose rights an upstream judges by his own login (`access = "caller"`). Cheap to clone.
#[derive(Clone)]
pub struct Caller(
    /// Nothing of whoever offers no login.
    Option<Arc<(CallerId, Login)>>,
);

/// Tells one login from another, and says nothing of it: a keyed hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerId(pub [u8; 32]);

impl Caller {
    /// Who offers this login.
    pub fn with_login(id: CallerId, login: Login) -> Self {
        Self(Some(Arc::new((id, login))))
    }

    /// Whoever offers none: what the upstream gives to everybody is his.
    pub const fn anonymous() -> Self {
        Self(None)
    }

    /// What tells him from others.
    pub fn id(&self) -> CallerId {
        self.0.as_ref().map_or(CallerId::ANONYMOUS, |known| known.0)
    }

    /// What he proves himself with.
    pub fn login(&self) -> Option<&Login> {
        Some(&self.0.as_ref()?.1)
    }
}

impl CallerId {
    const ANONYMOUS: Self = Self([0; 32]);
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.id()).finish()
    }
}

/// In hexadecimal, cut short: enough to find one among those of a log.
impl fmt::Display for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANONYMOUS {
            return f.write_str("anonymous");
        }
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
