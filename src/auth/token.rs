//! Tokens: what the edge itself has written about who may pull what, for five minutes.
//!
//! JWTs (RFC 7519) in the form that registries use (distribution `docs/spec/auth/jwt.md`), signed with Ed25519. The one
//! action that they can name is `pull`. The login of a caller, which the edge needs when it asks the upstream, is sealed
//! within his token: no node has to remember it, and whoever reads the token learns nothing of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Header, Validation, decode, decode_header, encode};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::Denial;
use super::keyed_hash::{KeyedHash, Sealer};
use super::keys::KeyId;
use super::signing::{ALGORITHM, Keyring};
use crate::oci::Repository;
use crate::routing::{Caller, Login, UpstreamName};
use crate::runtime::{Clock, Secret, Timestamp};

/// How long a token is good for.
pub const LIFETIME: Duration = Duration::from_mins(5);
/// By how much the clocks of nodes may differ.
const SKEW: Duration = Duration::from_mins(1);
/// Whom tokens are for, and who has written them unless an external URL says so.
pub const SERVICE: &str = "clawhub-edge";
/// Bytes of tokens in memory whose signature was checked: of 700 each, or a few thousand with a long login.
const VERIFIED: u64 = 64 << 20;
/// Bytes of random for the id of a token.
const ID: usize = 12;

/// How the subjects of tokens begin, or what they are.
const ANYBODY: &str = "anonymous";
const LOGIN: &str = "login:";
const KEY: &str = "key:";

/// Whom a token is issued to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bearer<'a> {
    Anybody,
    Login(&'a UpstreamName, &'a Login),
    Key(&'a KeyId),
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    access: Vec<Access>,
    /// The caller's login at one upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<SealedLogin>,
}

/// One right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Access {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SealedLogin {
    upstream: String,
    sealed: String,
}

/// A login before it is sealed.
#[derive(Serialize, Deserialize)]
struct PlainLogin {
    username: Option<String>,
    secret: String,
}

/// A right that a token grants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Granted {
    /// To pull from a repository.
    Repository(UpstreamName, Repository),
    /// To list the repositories of an upstream.
    Catalog(UpstreamName),
}

/// For whom a token was issued.
#[derive(Debug)]
pub(super) enum Subject {
    /// Anybody.
    Anybody,
    /// Whoever has this login at this upstream.
    Caller(UpstreamName, Caller),
    /// Whoever has the secret of this key, which may have been revoked since.
    Key(KeyId),
}

/// A token whose every part was checked.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) subject: Subject,
    granted: HashSet<Granted>,
    expires_at: Timestamp,
}

impl Verified {
    pub(super) fn grants(&self, right: &Granted) -> bool {
        self.granted.contains(right)
    }
}

/// It is no token of ours (another algorithm, key, issuer or audience, or a byte was changed), or not of this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault;

impl From<Fault> for Denial {
    fn from(_: Fault) -> Self {
        Self::InvalidToken
    }
}

/// Writes tokens and reads them.
#[derive(Debug)]
pub(super) struct Tokens {
    keyring: Arc<Keyring>,
    sealer: Sealer,
    hash: Arc<KeyedHash>,
    issuer: String,
    clock: Arc<dyn Clock>,
    // By the token itself: a hash that nobody can make two tokens of takes four times as long as a look-up. moka: bounded,
    // and forgets by itself.
    verified: Cache<Arc<str>, Arc<Verified>>,
}

impl Tokens {
    pub(super) fn new(
        keyring: Arc<Keyring>,
        hash: Arc<KeyedHash>,
        external_url: Option<&str>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let sealer = hash.sealer("login");
        let issuer = external_url.unwrap_or(SERVICE).to_owned();
        // What is read of it takes as much again.
        let weigh =
            |token: &Arc<str>, _: &Arc<Verified>| u32::try_from(token.len() * 2 + 512).unwrap_or(u32::MAX);
        let verified =
            Cache::builder().max_capacity(VERIFIED).weigher(weigh).time_to_live(LIFETIME + SKEW).build();
        Self { keyring, sealer, hash, issuer, clock, verified }
    }

    /// The keys that tokens are checked with, as RFC 7517 writes them.
    pub(super) fn jwks(&self) -> String {
        self.keyring.current().jwks.clone()
    }

    /// A token for these rights, and since when it is good.
    pub(super) fn issue(
        &self,
        granted: &[Granted],
        bearer: Bearer<'_>,
    ) -> Result<(Secret, Timestamp), String> {
        let issued_at = self.clock.now();
        let seconds = issued_at.as_millis() / 1000;
        let mut id = [0; ID];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| "the machine gives no random bytes".to_owned())?;
        let (subject, login) = match bearer {
            Bearer::Anybody => (ANYBODY.to_owned(), None),
            Bearer::Login(upstream, login) => {
                let caller = self.hash.caller(upstream, login);
                (format!("{LOGIN}{caller}"), Some(self.seal(upstream, login)?))
            }
            Bearer::Key(id) => (format!("{KEY}{id}"), None),
        };
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: SERVICE.to_owned(),
            sub: subject,
            iat: seconds,
            nbf: seconds,
            exp: seconds + LIFETIME.as_secs(),
            jti: base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, id),
            access: granted.iter().map(Access::of).collect(),
            login,
        };
        let keys = self.keyring.current();
        let header = Header { kid: Some(keys.id.clone()), ..Header::new(ALGORITHM) };
        let token = encode(&header, &claims, &keys.signing).map_err(|error| error.to_string())?;
        Ok((Secret::new(token), issued_at))
    }

    /// What a token says, if it is to be believed. One that was seen before costs a look-up.
    pub(super) fn verify(&self, token: &str) -> Result<Arc<Verified>, Fault> {
        let verified = match self.verified.get(token) {
            Some(verified) => verified,
            None => {
                let verified = Arc::new(self.read(token)?);
                self.verified.insert(token.into(), Arc::clone(&verified));
                verified
            }
        };
        // Whatever memory says.
        if self.clock.now() < verified.expires_at { Ok(verified) } else { Err(Fault) }
    }

    fn read(&self, token: &str) -> Result<Verified, Fault> {
        let header = decode_header(token).map_err(|_| Fault)?;
        let keys = self.keyring.current();
        let key = header.kid.as_deref().and_then(|id| keys.find(id)).ok_or(Fault)?;
        let mut validation = Validation::new(ALGORITHM);
        validation.set_audience(&[SERVICE]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["aud", "exp", "iss", "nbf"]);
        // By our own clock, below.
        validation.validate_exp = false;
        let claims: Claims = decode(token, key, &validation).map_err(|_| Fault)?.claims;
        let now = self.clock.now().as_millis() / 1000;
        if claims.nbf > now + SKEW.as_secs() || claims.exp <= now {
            return Err(Fault);
        }
        let subject = match (claims.login, claims.sub.strip_prefix(KEY)) {
            (Some(login), None) => {
                let (upstream, caller) = self.unseal(&login)?;
                Subject::Caller(upstream, caller)
            }
            (None, Some(id)) => Subject::Key(id.parse().map_err(|_| Fault)?),
            (None, None) if claims.sub == ANYBODY => Subject::Anybody,
            _ => return Err(Fault),
        };
        Ok(Verified {
            subject,
            granted: claims.access.iter().filter_map(Access::read).collect(),
            expires_at: Timestamp::from_millis(claims.exp.saturating_mul(1000)),
        })
    }

    fn seal(&self, upstream: &UpstreamName, login: &Login) -> Result<SealedLogin, String> {
        let plain = match login {
            Login::Password { username, password } => {
                PlainLogin { username: Some(username.clone()), secret: password.expose().to_owned() }
            }
            Login::IdentityToken(token) => PlainLogin { username: None, secret: token.expose().to_owned() },
        };
        let plain = serde_json::to_vec(&plain).map_err(|error| error.to_string())?;
        let sealed = self.sealer.seal(&plain, upstream.as_str())?;
        Ok(SealedLogin { upstream: upstream.as_str().to_owned(), sealed })
    }

    fn unseal(&self, login: &SealedLogin) -> Result<(UpstreamName, Caller), Fault> {
        let upstream: UpstreamName = login.upstream.parse().map_err(|_| Fault)?;
        let plain = self.sealer.unseal(&login.sealed, upstream.as_str()).ok_or(Fault)?;
        let plain: PlainLogin = serde_json::from_slice(&plain).map_err(|_| Fault)?;
        let login = match plain.username {
            Some(username) => Login::password(&username, Secret::new(plain.secret)),
            None => Login::IdentityToken(Secret::new(plain.secret)),
        };
        let caller = Caller::with_login(self.hash.caller(&upstream, &login), login);
        Ok((upstream, caller))
    }
}

impl Access {
    fn of(granted: &Granted) -> Self {
        let (kind, name, action) = match granted {
            Granted::Repository(upstream, repository) => {
                ("repository", format!("{upstream}/{repository}"), "pull")
            }
            Granted::Catalog(upstream) => ("registry", format!("{upstream}/catalog"), "*"),
        };
        Self { kind: kind.to_owned(), name, actions: vec![action.to_owned()] }
    }

    fn read(&self) -> Option<Granted> {
        let (upstream, name) = self.name.split_once('/')?;
        let upstream = upstream.parse().ok()?;
        let includes = |action: &str| self.actions.iter().any(|given| given == action);
        match self.kind.as_str() {
            "repository" if includes("pull") => Some(Granted::Repository(upstream, name.parse().ok()?)),
            "registry" if name == "catalog" && includes("*") => Some(Granted::Catalog(upstream)),
            _ => None,
        }
    }
}
