//! `[database]`.

use std::path::{Path, PathBuf};

use crate::runtime::{Secret, Section};

/// Where the database is.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Its address.
    pub url: DatabaseUrl,
}

/// The address of a database.
#[derive(Debug, Clone)]
pub enum DatabaseUrl {
    /// A file of SQLite's beside the edge.
    File(PathBuf),
    /// PostgreSQL, for several nodes. It may hold a password.
    Postgres(Secret),
}

impl DatabaseConfig {
    /// Reads the section; without a URL the database is a file in the `state` directory.
    pub fn read(section: &Section<'_>, state: &Path) -> Self {
        let given = section.optional::<Secret>("url");
        let file = section.optional::<PathBuf>("url_file");
        let url = match (given, file) {
            (Some(_), Some(_)) => {
                section.mistake("url_file", "either this or `url`, not both");
                None
            }
            (Some(url), None) => Some(("url", url)),
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(text) => Some(("url_file", Secret::new(text.trim()))),
                Err(reason) => {
                    section.mistake("url_file", format!("{} cannot be read: {reason}", path.display()));
                    None
                }
            },
            (None, None) => None,
        };
        let of_postgres = |(key, url): (&str, Secret)| {
            let is_known =
                ["postgres://", "postgresql://"].iter().any(|scheme| url.expose().starts_with(scheme));
            if !is_known {
                section.mistake(
                    key,
                    "must begin with postgres://; without it SQLite is used, in state.directory",
                );
            }
            is_known.then_some(DatabaseUrl::Postgres(url))
        };
        let in_state = || DatabaseUrl::File(state.join("clawhub-edge.db"));
        Self { url: url.and_then(of_postgres).unwrap_or_else(in_state) }
    }
}
