//! Where an endpoint's login comes from.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::runtime::Secret;

use super::docker_config;
use super::helper::Helper;

/// How long what a file says is used without looking at it again.
const FILE_FRESH_FOR: Duration = Duration::from_secs(30);

/// A credential's source. What may change while the edge runs is named, not held.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Both are part of the configuration.
    Fixed {
        /// The user name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// The password is the first line of a file, read again at use so that it can be rotated.
    File {
        /// The user name.
        username: String,
        /// The file.
        password_file: PathBuf,
    },
    /// An entry of Docker's `config.json`, read again at use so that `docker login` takes effect.
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// The entry's key below `auths`.
        key: String,
    },
    /// A program's answer, asked for again when it is old or refused: it may be a cloud's, and expire.
    Helper(Helper),
}

impl Credential {
    /// The login of this moment. Reads a small file or runs a program where the source is one.
    ///
    /// Cancel safe: a program is killed.
    ///
    /// # Errors
    /// [`CredentialError`] when the file is gone, the program fails, or neither has a credential any more; the
    /// operator mends it.
    pub async fn login(&self) -> Result<Login, CredentialError> {
        match self {
            Self::Fixed { username, password } => Ok(Login::password(username, password.clone())),
            Self::File { username, password_file } => {
                let text = read(password_file, tokio::fs::read_to_string(password_file).await)?;
                Ok(Login::password(username, first_line(&text)))
            }
            Self::DockerConfig { path, key } => {
                let text = read(path, tokio::fs::read_to_string(path).await)?;
                docker_config::login(&text, key).ok_or_else(|| CredentialError::File {
                    path: path.clone(),
                    reason: format!("no login for {key}"),
                })
            }
            Self::Helper(helper) => helper.login().await,
        }
    }

    /// How long a login is used before [`Credential::login`] is asked again; `None` if it never changes.
    pub fn fresh_for(&self) -> Option<Duration> {
        match self {
            Self::Fixed { .. } => None,
            Self::File { .. } | Self::DockerConfig { .. } => Some(FILE_FRESH_FOR),
            Self::Helper(helper) => Some(helper.fresh_for()),
        }
    }

    /// Whether asking for it starts a program, which is not done for every refusal.
    pub fn is_costly(&self) -> bool {
        matches!(self, Self::Helper(_))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { .. } => f.write_str("Fixed([redacted])"),
            Self::File { password_file, .. } => f.debug_tuple("File").field(password_file).finish(),
            Self::DockerConfig { path, key } => f.debug_tuple("DockerConfig").field(path).field(key).finish(),
            Self::Helper(helper) => f.debug_tuple("Helper").field(helper).finish(),
        }
    }
}

/// What proves who this edge is.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user name and a password.
    Password {
        /// The user name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token (OAuth 2.0), which only a token service takes.
    IdentityToken(Secret),
}

impl Login {
    /// A user name and a password.
    pub fn password(username: &str, password: Secret) -> Self {
        Self::Password { username: username.to_owned(), password }
    }

    /// The value of an `Authorization` header of the Basic scheme (RFC 7617); an identity token has none.
    pub fn basic(&self) -> Option<Secret> {
        match self {
            Self::Password { username, password } => {
                let pair = format!("{username}:{}", password.expose());
                Some(Secret::new(format!("Basic {}", STANDARD.encode(pair))))
            }
            Self::IdentityToken(_) => None,
        }
    }

    /// The password or the token.
    pub fn secret(&self) -> &Secret {
        match self {
            Self::Password { password, .. } => password,
            Self::IdentityToken(token) => token,
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login([redacted])")
    }
}

/// A credential cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Its file cannot be used.
    #[error("the credential in {} cannot be read: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Its helper gives none.
    #[error("the credential helper {} gives no credential: {reason}", program.display())]
    Helper {
        /// The program.
        program: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

fn read(path: &Path, text: io::Result<String>) -> Result<String, CredentialError> {
    text.map_err(|error| CredentialError::File { path: path.to_owned(), reason: error.to_string() })
}

/// A password file usually ends with a line feed that is not part of the password.
fn first_line(text: &str) -> Secret {
    Secret::new(text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rotated_password_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, "old\n").unwrap();
        let credential =
            Credential::File { username: "robot".to_owned(), password_file: password_file.clone() };
        assert_eq!(credential.login().await.unwrap().basic().unwrap().expose(), "Basic cm9ib3Q6b2xk");
        std::fs::write(&password_file, "new").unwrap();
        assert_eq!(credential.login().await.unwrap().basic().unwrap().expose(), "Basic cm9ib3Q6bmV3");
        std::fs::remove_file(&password_file).unwrap();
        assert!(credential.login().await.unwrap_err().to_string().contains("password"));
    }

    #[test]
    fn a_credential_never_shows_itself() {
        let credential =
            Credential::Fixed { username: "hidden-user".to_owned(), password: Secret::new("hidden-word") };
        assert!(!format!("{credential:?}").contains("hidden"));
        let login = Login::password("hidden-user", Secret::new("hidden-word"));
        assert!(!format!("{login:?} {:?}", login.basic()).contains("hidden"));
    }
}
