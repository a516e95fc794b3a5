//! The process's log: one line per event, for people or for machines.

use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use super::line::{AccessLog, Style};
use super::lines::Lines;
use super::registry::Metrics;
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

    /// Begins to log to standard error. The first call in a process decides what becomes of events.
    pub fn start(&self) -> Log {
        let lines = Lines::to(io::stderr());
        let is_terminal = io::stderr().is_terminal();
        let filter = EnvFilter::from_str(&self.level).unwrap_or_else(|_| EnvFilter::new("info"));
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone());
        let result = match self.format {
            LogFormat::Text => builder.with_ansi(is_terminal).try_init(),
            LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "logging was started before");
        }
        flush_on_panic(lines.clone());
        Log { access: AccessLog { lines, style: Style::new(self.format, is_terminal) } }
    }
}

/// The log of a running process; what is still waiting is written when this is dropped.
#[derive(Debug)]
pub struct Log {
    access: AccessLog,
}

impl Log {
    /// Registers the counter of what is dropped.
    pub fn register(&self, metrics: &Metrics) {
        metrics.register(self.access.lines.dropped().clone());
    }

    /// Where the lines of the access log go.
    pub fn access(&self) -> &AccessLog {
        &self.access
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.access.lines.flush();
    }
}

/// What was logged before a panic stands before its message, and is not lost should the process end with it.
fn flush_on_panic(lines: Lines) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        lines.flush();
        report(panic);
    }));
}
