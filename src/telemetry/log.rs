//! The process's log: one line per event, for people or for machines.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::runtime::{Section, keyword_setting};

/// `[log]`.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// What is logged: a level, or directives such as `info,clawhub_edge::upstream=debug`.
    pub level: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

keyword_setting!(LogFormat, "\"text\" or \"json\"", "text" => LogFormat::Text, "json" => LogFormat::Json);

impl LogConfig {
    /// Reads the section.
    pub fn read(section: &Section<'_>) -> Self {
        let level = section.read("level", "info".to_owned());
        if let Err(error) = EnvFilter::from_str(&level) {
            section
                .mistake("level", format!("expected a level such as \"info\" or filter directives: {error}"));
        }
        Self { format: section.read("format", LogFormat::Text), level }
    }

    /// Begins to log to standard error. The first call in a process wins.
    pub fn start(&self) {
        self.start_with(std::io::stderr);
    }

    fn start_with<W>(&self, writer: W)
    where
        W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    {
        let filter = EnvFilter::from_str(&self.level).unwrap_or_else(|_| EnvFilter::new("info"));
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
        let result = match self.format {
            LogFormat::Text => {
                builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
            }
            LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "logging was started before");
        }
    }
}
