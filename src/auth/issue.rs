//! Giving out tokens.

use std::sync::Arc;

use hyper::HeaderMap;

use super::authorization::Authorization;
use super::token::{Granted, Issued};
use super::{Auth, Denial};
use crate::routing::{Login, Route, Upstream};

/// What a token is asked for.
#[derive(Debug, Clone)]
pub enum Right {
    /// To pull from a repository.
    Pull(Route),
    /// To list the repositories of an upstream.
    Catalog(Arc<Upstream>),
}

impl Right {
    fn upstream(&self) -> &Upstream {
        match self {
            Self::Pull(route) => &route.upstream,
            Self::Catalog(upstream) => upstream,
        }
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

    /// A token for as many of these rights as its bearer may have. A login is for the upstream of the first of them, which
    /// says at the pull what it is worth; of others he has what they give to everybody.
    ///
    /// # Errors
    /// [`Denial::Internal`] where nothing can be signed; why is in the log.
    pub fn issue(&self, login: Option<&Login>, rights: &[Right]) -> Result<Issued, Denial> {
        let for_whom = login.zip(rights.first()).map(|(login, right)| (&right.upstream().name, login));
        // A token with a login speaks for nobody at another upstream.
        let is_his = |right: &&Right| for_whom.is_none_or(|(upstream, _)| *upstream == right.upstream().name);
        let granted: Vec<Granted> = rights.iter().filter(is_his).map(Granted::from).collect();
        self.tokens.issue(&granted, for_whom).map_err(|error| {
            tracing::error!(error, "no token can be issued");
            Denial::Internal
        })
    }
}
