//! Where an endpoint's user name and password come from.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::runtime::Secret;

use super::docker_config;

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
}

impl Credential {
    /// The user name and password of this moment. Reads a small file where the source is one.
    ///
    /// # Errors
    /// [`CredentialError`] when the file is gone or no longer holds a credential; the operator mends it.
    pub async fn login(&self) -> Result<Login, CredentialError> {
        match self {
            Self::Fixed { username, password } => Ok(Login::new(username, password.clone())),
            Self::File { username, password_file } => {
                let text = read(password_file, tokio::fs::read_to_string(password_file).await)?;
                Ok(Login::new(username, first_line(&text)))
            }
            Self::DockerConfig { path, key } => {
                let text = read(path, tokio::fs::read_to_string(path).await)?;
                docker_config::login(&text, key).ok_or_else(|| CredentialError {
                    path: path.clone(),
                    reason: format!("no login for {key}"),
                })
            }
        }
    }

    /// Whether [`Credential::login`] may give something else next time.
    pub fn can_change(&self) -> bool {
        !matches!(self, Self::Fixed { .. })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { .. } => f.write_str("Fixed([redacted])"),
            Self::File { password_file, .. } => f.debug_tuple("File").field(password_file).finish(),
            Self::DockerConfig { path, key } => f.debug_tuple("DockerConfig").field(path).field(key).finish(),
        }
    }
}

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    username: String,
    password: Secret,
}

impl Login {
    pub(super) fn new(username: &str, password: Secret) -> Self {
        Self { username: username.to_owned(), password }
    }

    /// The user name.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The value of an `Authorization` header of the Basic scheme (RFC 7617).
    pub fn basic(&self) -> Secret {
        let pair = format!("{}:{}", self.username, self.password.expose());
        Secret::new(format!("Basic {}", STANDARD.encode(pair)))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login([redacted])")
    }
}

/// A credential's file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credential in {} cannot be read: {reason}", path.display())]
pub struct CredentialError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

fn read(path: &Path, text: io::Result<String>) -> Result<String, CredentialError> {
    text.map_err(|error| CredentialError { path: path.to_owned(), reason: error.to_string() })
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
        assert_eq!(credential.login().await.unwrap().basic().expose(), "Basic cm9ib3Q6b2xk");
        std::fs::write(&password_file, "new").unwrap();
        assert_eq!(credential.login().await.unwrap().basic().expose(), "Basic cm9ib3Q6bmV3");
        std::fs::remove_file(&password_file).unwrap();
        assert!(credential.login().await.unwrap_err().to_string().contains("password"));
    }

    #[test]
    fn a_credential_never_shows_itself() {
        let credential =
            Credential::Fixed { username: "hidden-user".to_owned(), password: Secret::new("hidden-word") };
        assert!(!format!("{credential:?}").contains("hidden"));
        let login = Login::new("hidden-user", Secret::new("hidden-word"));
        assert!(!format!("{login:?} {:?}", login.basic()).contains("hidden"));
    }
}
