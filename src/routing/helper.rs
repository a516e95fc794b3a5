//! Credential helpers: programs that keep a login, as Docker runs them (docker/docker-credential-helpers).
//!
//! `docker-credential-NAME get` reads the server's name from standard input and prints
//! `{"Username": …, "Secret": …}`; with the user name `<token>` the secret is an identity token. On a failure it
//! ends with another status than 0 and says why on standard output.
//!
//! No shell is involved. A helper gets a process group of its own, which is killed as a whole when it takes too
//! long or when nobody waits for it any more: helpers are often scripts around the programs that really hang. It
//! inherits the environment, which is how it finds its own account, but none of this edge's settings, among which
//! are other upstreams' passwords.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::oci::excerpt;
use crate::runtime::Secret;

use super::credential::{CredentialError, Login};

/// What every helper's name begins with.
const PREFIX: &str = "docker-credential-";

/// The user name that stands for an identity token.
const TOKEN_USER: &str = "<token>";

/// What Docker's helpers print when they have nothing for a server.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Identity tokens with all groups of a user are some KiB; a helper that prints more is none.
const MAX_ANSWER: u64 = 64 << 10;

/// What is kept of a helper's complaints, in bytes and in characters of a message.
const MAX_COMPLAINT: u64 = 4 << 10;
const SHOWN: usize = 200;

/// Variables that are this process's own: its settings, and what systemd tells it alone.
const PRIVATE_VARIABLES: [&str; 4] = ["CLAWHUB_EDGE_", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_"];

/// How long a helper may take, and how long its answer is used without asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    pub(super) time_out: Duration,
    pub(super) fresh_for: Duration,
}

/// A helper, and what to ask it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helper {
    program: PathBuf,
    /// The server in the words of whoever stored the login there.
    server: String,
    patience: Patience,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helper {
    /// The helper `name`, which is what follows `docker-credential-`, or a program's absolute path.
    ///
    /// # Errors
    /// Why there is no such program, in words for the operator.
    pub(super) fn find(name: &str, server: String, patience: Patience) -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = locate(name, std::env::split_paths(&path))?;
        Ok(Self { program, server, patience })
    }

    /// How long its answer is used without asking again.
    pub(super) fn fresh_for(&self) -> Duration {
        self.patience.fresh_for
    }

    /// Runs the program. Cancel safe: it is killed when nobody waits for it any more.
    pub(super) async fn login(&self) -> Result<Login, CredentialError> {
        let limit = self.patience.time_out;
        let late = || Err(format!("it has not answered within {} ms", limit.as_millis()));
        let outcome = timeout(limit, self.run()).await.unwrap_or_else(|_| late());
        outcome.map_err(|reason| CredentialError::Helper { program: self.program.clone(), reason })
    }

    async fn run(&self) -> Result<Login, String> {
        let mut command = Command::new(&self.program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        for (variable, _) in std::env::vars_os() {
            let is_private = |prefix| variable.to_str().is_some_and(|name: &str| name.starts_with(prefix));
            if PRIVATE_VARIABLES.into_iter().any(is_private) {
                command.env_remove(&variable);
            }
        }
        let mut family = Family(command.spawn().map_err(|error| format!("it cannot be run: {error}"))?);
        let child = &mut family.0;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ask = async {
            if let Some(mut stdin) = stdin {
                // A helper that has its answer without reading the question closes this early.
                let _ = stdin.write_all(format!("{}\n", self.server).as_bytes()).await;
            }
        };
        let ((), answer, complaint) =
            tokio::join!(ask, read(stdout, MAX_ANSWER + 1), read(stderr, MAX_COMPLAINT));
        // Only now: while its children hold the pipes, the leader's id must stay taken.
        let status = child.wait().await.map_err(|error| error.to_string())?;
        let result = if status.success() {
            self.understand(&answer)
        } else {
            Err(self.refusal(&answer, &status.to_string()))
        };
        self.log(&complaint, &result);
        result
    }

    fn understand(&self, answer: &[u8]) -> Result<Login, String> {
        if answer.len() as u64 > MAX_ANSWER {
            return Err(format!("it prints more than {MAX_ANSWER} bytes"));
        }
        // serde's message would quote the answer, which holds the secret.
        let answer: Answer = serde_json::from_slice(answer)
            .map_err(|_| "it prints no JSON with `Username` and `Secret`".to_owned())?;
        match (answer.username.as_str(), Secret::new(answer.secret)) {
            (_, secret) if secret.expose().is_empty() => Err(self.nothing()),
            (TOKEN_USER, secret) => Ok(Login::IdentityToken(secret)),
            (username, secret) => Ok(Login::password(username, secret)),
        }
    }

    /// What a failure means. Its words are shown unless they look like an answer, which would hold a secret.
    fn refusal(&self, answer: &[u8], status: &str) -> String {
        let words = String::from_utf8_lossy(answer);
        let words = words.trim();
        if words.contains(NOT_FOUND) {
            return self.nothing();
        }
        if words.is_empty() || words.contains('{') {
            return format!("it ended with {status}");
        }
        format!("it ended with {status}: {}", excerpt(words, SHOWN))
    }

    fn nothing(&self) -> String {
        format!("it has no credential for {}", self.server)
    }

    /// Whatever a helper complains about is for the operator, but for a secret among it.
    fn log(&self, complaint: &[u8], result: &Result<Login, String>) {
        let mut words = String::from_utf8_lossy(complaint).trim().to_owned();
        if words.is_empty() {
            return;
        }
        if let Ok(login) = result {
            words = words.replace(login.secret().expose(), "[redacted]");
        }
        let (program, words) = (self.program.display(), excerpt(&words, SHOWN));
        match result {
            Ok(_) => tracing::debug!(%program, "a credential helper says: {words}"),
            Err(_) => tracing::warn!(%program, "a credential helper that failed says: {words}"),
        }
    }
}

/// A child with everything that it has started. Dropping it kills them, unless the child has been waited for.
struct Family(Child);

impl Drop for Family {
    fn drop(&mut self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The first `limit` bytes; the rest is read too, so that the writer does not wait for a reader.
async fn read(from: Option<impl AsyncRead + Unpin>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // A pipe that breaks has ended.
        let _ = (&mut from).take(limit).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    bytes
}

fn locate(name: &str, folders: impl Iterator<Item = PathBuf>) -> Result<PathBuf, String> {
    if name.starts_with('/') {
        let program = PathBuf::from(name);
        return if is_program(&program) { Ok(program) } else { Err(format!("{name} is no program")) };
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(fits) {
        return Err(format!(
            "a helper is the word behind {PREFIX} (as \"ecr-login\"), or a program's absolute path"
        ));
    }
    let file = format!("{PREFIX}{name}");
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(&file))
        .find(|program| is_program(program))
        .ok_or_else(|| format!("no folder of PATH has the program {file}"))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tokio::time::Instant;

    /// A helper that does what the file `script` beside it says. The program itself is never written by a test,
    /// because a file that any process still has open for writing cannot be run.
    fn helper(folder: &Path, script: &str, time_out: Duration) -> Helper {
        std::fs::write(folder.join("script"), script).unwrap();
        let scripted = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/docker-credential-scripted");
        let program = folder.join("docker-credential-test");
        if !program.exists() {
            symlink(scripted, &program).unwrap();
        }
        let patience = Patience { time_out, fresh_for: Duration::from_mins(10) };
        Helper::find(program.to_str().unwrap(), "registry.example".to_owned(), patience).unwrap()
    }

    async fn run(script: &str) -> Result<Login, String> {
        let folder = tempfile::tempdir().unwrap();
        helper(folder.path(), script, Duration::from_secs(10)).run().await
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_its_server_and_gives_a_password_or_an_identity_token() {
        let login = run(
            r#"read server; echo "{\"ServerURL\":\"x\",\"Username\":\"AWS\",\"Secret\":\"for $server\"}""#,
        );
        assert_eq!(login.await.unwrap(), Login::password("AWS", Secret::new("for registry.example")));
        let login = run(r#"echo '{"Username":"<token>","Secret":"refresh"}'"#);
        assert_eq!(login.await.unwrap(), Login::IdentityToken(Secret::new("refresh")));
    }

    #[tokio::test]
    async fn a_failure_says_what_failed_and_shows_no_secret() {
        for (script, expected) in [
            ("echo 'credentials not found in native keychain'; exit 1", "no credential for registry.example"),
            ("echo 'no AWS account'; exit 3", "status: 3: no AWS account"),
            (r#"echo '{"Secret":"hidden"}'; exit 1"#, "status: 1"),
            (r#"echo '{"Username":"a","Secret":"hidden"'"#, "no JSON"),
            (r#"echo '{"Username":"a","Secret":""}'"#, "no credential for"),
            ("head -c 100000 /dev/zero", "more than 65536 bytes"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let reason = run(script).await.unwrap_err();
            assert!(reason.contains(expected) && !reason.contains("hidden"), "{script}: {reason}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo $$ > leader; sleep 600 & echo $! > child; wait";
        let helper = helper(folder.path(), script, Duration::from_millis(500));
        let began = Instant::now();
        let error = helper.login().await.unwrap_err().to_string();
        assert!(error.contains("docker-credential-test") && error.contains("500 ms"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5));
        for file in ["leader", "child"] {
            let pid = std::fs::read_to_string(folder.path().join(file)).unwrap();
            let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
            // Whoever has adopted it may not have collected it yet.
            let is_gone =
                || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")).then_some(());
            for _ in 0..500 {
                if is_gone().is_none() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(is_gone(), None, "{file} lives on");
        }
    }

    #[test]
    fn a_helper_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let find = |name| locate(name, [PathBuf::from("relative"), folder.path().to_owned()].into_iter());
        assert!(find("ecr-login").unwrap_err().contains("docker-credential-ecr-login"));
        let program = folder.path().join("docker-credential-ecr-login");
        std::fs::write(&program, "").unwrap();
        assert!(find("ecr-login").is_err(), "it cannot be run");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("ecr-login").unwrap(), program);
        for name in ["", "../x", "a b", "/nonexistent/x", "-; rm"] {
            assert!(find(name).is_err(), "{name}");
        }
    }
}
