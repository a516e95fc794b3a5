//! `clawhub-edge keys`: who may pull what.
//!
//! Works on the database that the configuration names, whether an edge runs or not. What a running edge has to know at
//! once is waited for.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep};

use super::{say, say_words};
use crate::auth::keys::{Key, KeyId, KeySecret, KeySpec, KeyStore};
use crate::auth::open_keys;
use crate::config::Config;
use crate::database::{Database, Durability};
use crate::routing::ImagePattern;
use crate::runtime::{Clock as _, Network, Setting, SystemClock, Timestamp};

/// How long running edges are waited for until they know of a change.
const PATIENCE: Duration = Duration::from_secs(5);
/// What means that there is no end.
const NEVER: &str = "never";

#[derive(Debug, Args)]
pub(super) struct KeysArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key; its secret is printed once, and known to nobody afterwards
    Create(CreateArguments),
    /// List the keys
    List(OutputArguments),
    /// Show one key
    Show {
        /// Its id
        id: KeyId,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Give a key another secret; the old one works for a while
    Rotate {
        /// Its id
        id: KeyId,
        /// How long the secret before works
        #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = setting::<Duration>)]
        overlap: Duration,
        #[command(flatten)]
        secret: SecretArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// End a key for ever, and the tokens that were issued for it
    Revoke {
        /// Its id
        id: KeyId,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Print a new secret without making a key, for a store of secrets that `create --secret-file` then reads
    Secret,
}

#[derive(Debug, Args)]
struct CreateArguments {
    /// What people call it
    #[arg(long)]
    name: String,
    /// What may be pulled with it, as docker.io/team-a/** or quay.io/app:v*; may be given several times
    #[arg(long = "scope", value_name = "PATTERN", required = true, value_parser = setting::<ImagePattern>)]
    scopes: Vec<ImagePattern>,
    /// From where, as 10.0.0.0/8; may be given several times [default: from everywhere]
    #[arg(long = "network", value_name = "NETWORK", value_parser = setting::<Network>)]
    networks: Vec<Network>,
    /// How long it is good for, or "never" for no end
    #[arg(long, value_name = "DURATION", default_value = "90d")]
    expires: String,
    /// Since when it is good, as 2030-01-31T00:00:00Z [default: at once]
    #[arg(long, value_name = "TIME")]
    not_before: Option<jiff::Timestamp>,
    #[command(flatten)]
    secret: SecretArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Debug, Args)]
struct SecretArguments {
    /// Take the secret from this file, or from standard input ("-"), in place of a new one
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Write the secret to this file, which only its owner can read, in place of standard output
    #[arg(long, value_name = "FILE", conflicts_with = "secret_file")]
    secret_output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Args)]
struct OutputArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Reads an argument as the configuration reads its settings.
fn setting<T: Setting>(text: &str) -> Result<T, String> {
    T::from_text(text).map_err(|reason| format!("{reason}; expected {}", T::EXPECTED))
}

impl KeysArguments {
    pub(super) async fn run(&self, config: &Config) -> Result<()> {
        if let Command::Secret = self.command {
            say(KeySecret::new().map_err(anyhow::Error::msg)?.text().expose());
            return Ok(());
        }
        let database = Database::open(&config.database, Durability::Full).await?;
        let keys = open_keys(&config.state, database.clone(), Arc::new(SystemClock)).await?;
        keys.check_secret().await?;
        let outcome = self.command.run(&keys).await;
        database.close().await;
        outcome
    }
}

impl Command {
    async fn run(&self, keys: &KeyStore) -> Result<()> {
        match self {
            Self::Create(arguments) => arguments.run(keys).await,
            Self::List(output) => {
                let keys = keys.list().await?;
                output.print(&keys, &keys)
            }
            Self::Show { id, output } => {
                let key = keys.get(id).await?;
                output.print(&key, std::slice::from_ref(&key))
            }
            Self::Rotate { id, overlap, secret, output } => {
                let given = secret.read()?;
                if given.as_ref().is_some_and(|given| given.id() != id) {
                    bail!("the given secret is of another key than {id}");
                }
                let is_given = given.is_some();
                let file = secret.create_output()?;
                let (key, fresh) = keys.rotate(id, *overlap, given).await?;
                hand_out(&key, &fresh, is_given, file, *output)?;
                notice(keys, &key).await
            }
            Self::Revoke { id, output } => {
                let key = keys.revoke(id).await?;
                if output.json {
                    print_json(&key)?;
                } else {
                    say_words(&[format!("The key {id} ({}) is revoked.", key.name)]);
                }
                notice(keys, &key).await
            }
            Self::Secret => Ok(()),
        }
    }
}

impl CreateArguments {
    async fn run(&self, keys: &KeyStore) -> Result<()> {
        let now = SystemClock.now();
        let not_before = self
            .not_before
            .map(|at| Timestamp::from_millis(u64::try_from(at.as_millisecond()).unwrap_or_default()));
        let expires_at = match self.expires.as_str() {
            NEVER => None,
            text => {
                let lifetime = setting::<Duration>(text)
                    .map_err(|reason| anyhow!("--expires: {reason}, or \"{NEVER}\""))?;
                Some(not_before.unwrap_or(now).after(lifetime))
            }
        };
        let spec = KeySpec {
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            networks: self.networks.clone(),
            not_before,
            expires_at,
        };
        let given = self.secret.read()?;
        let is_given = given.is_some();
        let file = self.secret.create_output()?;
        let (key, secret) = keys.create(spec, given).await?;
        hand_out(&key, &secret, is_given, file, self.output)
    }
}

impl SecretArguments {
    fn read(&self) -> Result<Option<KeySecret>> {
        let Some(path) = &self.secret_file else { return Ok(None) };
        let mut text = String::new();
        if path == Path::new("-") {
            std::io::stdin().lock().read_to_string(&mut text).context("reading standard input")?;
        } else {
            text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        }
        let secret =
            text.trim().parse().map_err(|reason| anyhow!("what {} holds {reason}", path.display()))?;
        Ok(Some(secret))
    }
}

impl SecretArguments {
    /// The file that the secret goes to, before there is one: a secret that cannot be written would be lost.
    fn create_output(&self) -> Result<Option<File>> {
        let Some(path) = &self.secret_output else { return Ok(None) };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        Ok(Some(file.with_context(|| path.display().to_string())?))
    }
}

/// Gives the secret to its owner, once.
fn hand_out(
    key: &Key,
    secret: &KeySecret,
    is_given: bool,
    file: Option<File>,
    output: OutputArguments,
) -> Result<()> {
    let text = secret.text().expose();
    let is_printed = file.is_none() && !is_given;
    if let Some(mut file) = file {
        file.write_all(format!("{text}\n").as_bytes()).context("writing the secret")?;
    }
    if output.json {
        let mut document = serde_json::to_value(key)?;
        if is_printed {
            document["secret"] = text.into();
        }
        return print_json(&document);
    }
    say_words(&[
        format!("Key {} ({}), {}.", key.id, key.name, lifetime(key)),
        format!(
            "Log in with user name {} and the secret as password, as in: docker login -u {0} EDGE",
            key.id
        ),
    ]);
    if is_printed {
        say_words(&["The secret, which is shown only now:".to_owned()]);
        say(text);
    }
    Ok(())
}

/// Waits until the running edges know.
async fn notice(keys: &KeyStore, key: &Key) -> Result<()> {
    let began = Instant::now();
    loop {
        let noticed = keys.noticed(key).await?;
        let is_over = began.elapsed() > PATIENCE;
        // One that is silent may only have had nothing to say: without keys nobody says anything.
        if noticed.by == noticed.of && (noticed.silent.is_empty() || is_over) {
            if noticed.of > 0 {
                say_words(&[format!("All {} running edges know.", noticed.of)]);
            }
            for node in &noticed.silent {
                say_words(&[format!(
                    "Nothing is heard of {node}: it has crashed, or does not reach the database and goes on as before for \
                     auth.grace."
                )]);
            }
            return Ok(());
        }
        if is_over {
            bail!("the change is made, but only {} of {} running edges know", noticed.by, noticed.of);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    say(&serde_json::to_string_pretty(value)?);
    Ok(())
}

impl OutputArguments {
    fn print(self, value: &impl serde::Serialize, keys: &[Key]) -> Result<()> {
        if self.json {
            return print_json(value);
        }
        print_table(keys);
        Ok(())
    }
}

fn print_table(keys: &[Key]) {
    let heads = ["ID", "NAME", "SCOPES", "FROM", "LIFETIME", "LAST USED", "USES"].map(str::to_owned);
    let join = |texts: Vec<String>| texts.join(" ");
    let rows = keys.iter().map(|key| {
        let networks = join(key.networks.iter().map(Setting::to_text).collect());
        [
            key.id.to_string(),
            key.name.clone(),
            join(key.scopes.iter().map(Setting::to_text).collect()),
            if networks.is_empty() { "everywhere".to_owned() } else { networks },
            lifetime(key),
            key.last_used_at.map_or_else(|| NEVER.to_owned(), |at| at.to_string()),
            key.uses.to_string(),
        ]
    });
    let rows: Vec<_> = std::iter::once(heads).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
        say(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn lifetime(key: &Key) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(at)) if at <= SystemClock.now() => format!("expired {at}"),
        (None, Some(at)) => format!("until {at}"),
        (None, None) => "for ever".to_owned(),
    }
}
