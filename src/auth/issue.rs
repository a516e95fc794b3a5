//! Giving out tokens.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::HeaderMap;

use super::authorization::Authorization;
use super::token::{Bearer, Granted};
use super::{Auth, Denial, Identity, scopes};
use crate::routing::{Access, Login, Route, Upstream};
use crate::runtime::{Secret, Timestamp};

/// What a token is asked for.
#[derive(Debug, Clone)]
pub enum Right {
    /// To pull from a repository.
    Pull(Route),
    /// To list the repositories of an upstream.
    Catalog(Arc<Upstream>),
}

/// A token as it is given out.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: Secret,
    /// Since when it is good.
    pub issued_at: Timestamp,
    /// What another can be had with, as long as its key lives: the secret of the key, which its owner has already.
    pub refresh_token: Option<Secret>,
}

impl Right {
    fn upstream(&self) -> &Upstream {
        match self {
            Self::Pull(route) => &route.upstream,
            Self::Catalog(upstream) => upstream,
        }
    }

    fn is_judged(&self) -> bool {
        self.upstream().access == Access::Caller
    }
}

impl From<&Right> for Granted {
    fn from(right: &Right) -> Self {
        match right {
            Right::Pull(route) => Self::Repository(route.upstream.name.clone(), route.repository.clone()),
            Right::Catalog(upstream) => Self::Catalog(upstream.name.clone()),
        }
    }
}

impl Auth {
    /// The login that a request for a token carries in its headers.
    ///
    /// # Errors
    /// [`Denial::Unusable`] where there is something else.
    pub fn login(headers: &HeaderMap) -> Result<Option<Login>, Denial> {
        match Authorization::read(headers)? {
            Authorization::None => Ok(None),
            Authorization::Login(login) => Ok(Some(login)),
            Authorization::Token(_) => Err(Denial::Unusable),
        }
    }

    /// A token for as many of these rights as its bearer may have. The login of a caller is for the upstream of the first
    /// of them, which says at the pull what it is worth; of others he has what is everybody's.
    ///
    /// # Errors
    /// [`Denial::Key`] where the login is that of a key that does not do, or of a key that there is not, and
    /// [`Denial::Unauthenticated`] where only keys are taken. [`Denial::Internal`] where nothing can be signed; why is in the
    /// log.
    pub async fn issue(
        &self,
        login: Option<Login>,
        from: Option<IpAddr>,
        rights: &[Right],
    ) -> Result<Issued, Denial> {
        let offered = login.as_ref().map(|login| login.secret().clone());
        let identity = match login {
            None => Identity::Anybody,
            Some(login) => self.of_login(login, from).await?,
        };
        let is_everybodys = |right: &Right| match right {
            // What it is worth to anybody, the upstream says.
            right if right.is_judged() => true,
            Right::Pull(route) => self.public.reaches(route),
            Right::Catalog(_) => self.public.is_everything,
        };
        let granted = |is_granted: &dyn Fn(&Right) -> bool| -> Vec<Granted> {
            rights.iter().filter(|right| is_granted(right)).map(Granted::from).collect()
        };
        let (issued, refresh_token) = match &identity {
            Identity::Key(key) => {
                let reaches = |right: &Right| match right {
                    // There it is anybody's.
                    right if right.is_judged() => true,
                    Right::Pull(route) => scopes::reach(&key.scopes, &route.upstream.name, &route.repository),
                    Right::Catalog(_) => true,
                };
                (self.tokens.issue(&granted(&reaches), Bearer::Key(&key.id)), offered)
            }
            // Only a key is of any use here, but a client shows the one login that it has also for what is everybody's.
            Identity::Login(_)
                if !self.has_callers && !self.public.is_everything && !rights.iter().any(is_everybodys) =>
            {
                return Err(Denial::Unauthenticated);
            }
            Identity::Login(login) => match rights.iter().find(|right| right.is_judged()) {
                Some(first) => {
                    let name = &first.upstream().name;
                    // A token with a login speaks for nobody at another upstream.
                    let is_his = |right: &Right| {
                        is_everybodys(right) && (!right.is_judged() || right.upstream().name == *name)
                    };
                    (self.tokens.issue(&granted(&is_his), Bearer::Login(name, login)), None)
                }
                None => (self.tokens.issue(&granted(&is_everybodys), Bearer::Anybody), None),
            },
            Identity::Anybody | Identity::Token(_) => {
                (self.tokens.issue(&granted(&is_everybodys), Bearer::Anybody), None)
            }
        };
        let (token, issued_at) = issued.map_err(|error| {
            tracing::error!(error, "no token can be issued");
            Denial::Internal
        })?;
        Ok(Issued { token, issued_at, refresh_token })
    }
}
