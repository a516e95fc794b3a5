//! Reading a configuration so that the operator sees every mistake at once.
//!
//! A room reads its own section key by key, naming the default with each key. A mistake is noted
//! and the default taken, so that reading goes on; [`Settings::finish`] then reports all of them,
//! unknown keys included, each with its file and line. Command-line flags win over the
//! environment, the environment over the file, the file over the default. The name of a variable
//! follows from its key: `store.memory` is `CLAWHUB_EDGE_STORE_MEMORY`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::{Bytes, Percent, Secret};

/// What every environment variable of a setting begins with.
const ENV_PREFIX: &str = "CLAWHUB_EDGE_";

/// Values from flags, by dotted key (`log.level`).
pub type Overrides = BTreeMap<String, String>;

/// Where a value stands, for the reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of the configuration file.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag,
    /// Nowhere: the default, or a key that is missing.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag => f.write_str("command line"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {key}: {message}")]
pub struct Mistake {
    /// Where the value stands.
    pub origin: Origin,
    /// The dotted key.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Everything that is wrong with the configuration, in the order in which it was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<Mistake>);

/// A type that can be the value of a key.
pub trait Setting: Sized {
    /// What is expected, as in "a duration such as \"5m\"".
    const EXPECTED: &'static str;
    /// Which TOML type carries it.
    const KIND: Kind = Kind::String;
    /// Reads the text of a TOML scalar, a variable or a flag.
    fn from_text(text: &str) -> Result<Self, String>;
    /// The text that [`Setting::from_text`] reads back, for the documentation of defaults.
    fn to_text(&self) -> String;
}

/// The TOML types that a scalar setting may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A quoted string.
    String,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A quoted string or a whole number.
    StringOrInteger,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Integer => "a number",
            Self::Boolean => "true or false",
            Self::StringOrInteger => "a string or a number",
        }
    }

    fn accepts(self, found: Self) -> bool {
        self == found || (self == Self::StringOrInteger && matches!(found, Self::String | Self::Integer))
    }
}

#[derive(Debug)]
enum Node {
    Scalar(Kind, String),
    Array(Vec<Item>),
    Table(BTreeMap<String, Item>),
    /// A float or a date, which no setting takes.
    Other(&'static str),
}

#[derive(Debug)]
struct Item {
    line: usize,
    node: Node,
}

/// A configuration while it is being read.
#[derive(Debug)]
pub struct Settings {
    file: Option<PathBuf>,
    root: Item,
    environment: BTreeMap<String, String>,
    overrides: Overrides,
    mistakes: RefCell<Vec<Mistake>>,
    known: RefCell<BTreeSet<String>>,
    known_variables: RefCell<BTreeSet<String>>,
    defaults: RefCell<Vec<(String, String)>>,
}

impl Settings {
    /// Takes the text of a file (none: an empty configuration), the process's environment and the
    /// values of flags. Syntax errors are noted as mistakes like any other.
    pub fn new(
        file: Option<(&Path, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: Overrides,
    ) -> Self {
        let mut mistakes = Vec::new();
        let root = match file {
            Some((path, text)) => {
                let (table, errors) = DeTable::parse_recoverable(text);
                mistakes.extend(errors.iter().map(|error| Mistake {
                    origin: Origin::File(
                        path.to_owned(),
                        line_of(text, error.span().map_or(0, |span| span.start)),
                    ),
                    key: "syntax".to_owned(),
                    message: error.message().to_owned(),
                }));
                table_item(text, 1, table.get_ref())
            }
            None => Item { line: 1, node: Node::Table(BTreeMap::new()) },
        };
        Self {
            file: file.map(|(path, _)| path.to_owned()),
            root,
            environment: environment
                .into_iter()
                .filter(|(variable, _)| variable.starts_with(ENV_PREFIX) && !is_service_link(variable))
                .collect(),
            overrides,
            mistakes: RefCell::new(mistakes),
            known: RefCell::default(),
            known_variables: RefCell::default(),
            defaults: RefCell::default(),
        }
    }

    /// The top-level table.
    pub fn root(&self) -> Section<'_> {
        Section { settings: self, path: String::new(), item: Some(&self.root) }
    }

    /// Declares a variable that is no setting (`CLAWHUB_EDGE_CONFIG`), so that it is not reported.
    pub fn allow_variable(&self, variable: &str) {
        self.known_variables.borrow_mut().insert(variable.to_owned());
    }

    /// Every key that was read with a default so far, with the text of the default.
    pub fn defaults(&self) -> Vec<(String, String)> {
        self.defaults.borrow().clone()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Every mistake that was found, unknown keys and variables included.
    pub fn finish(self) -> Result<(), Mistakes> {
        self.report_unknown_keys("", &self.root);
        let unknown_variables: Vec<_> = {
            let known = self.known_variables.borrow();
            self.environment.keys().filter(|variable| !known.contains(*variable)).cloned().collect()
        };
        for variable in unknown_variables {
            self.note(
                Origin::Environment(variable.clone()),
                &variable,
                "no setting has this variable".to_owned(),
            );
        }
        let mistakes = self.mistakes.into_inner();
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes)) }
    }

    fn report_unknown_keys(&self, path: &str, item: &Item) {
        let Node::Table(table) = &item.node else { return };
        for (name, child) in table {
            let key = join(path, name);
            if self.known.borrow().contains(&key) {
                match &child.node {
                    Node::Array(items) => {
                        for (index, item) in items.iter().enumerate() {
                            self.report_unknown_keys(&format!("{key}[{index}]"), item);
                        }
                    }
                    _ => self.report_unknown_keys(&key, child),
                }
            } else {
                let message = match self.closest(path, name) {
                    Some(near) => format!("unknown key; did you mean `{near}`?"),
                    None => "unknown key".to_owned(),
                };
                self.note(self.origin(child.line), &key, message);
            }
        }
    }

    fn closest(&self, path: &str, name: &str) -> Option<String> {
        let known = self.known.borrow();
        known
            .iter()
            .filter_map(|key| match key.rsplit_once('.') {
                Some((parent, last)) if parent == path => Some(last),
                None if path.is_empty() => Some(key.as_str()),
                _ => None,
            })
            .map(|candidate| (strsim::damerau_levenshtein(candidate, name), candidate))
            .filter(|(distance, _)| *distance <= 3)
            .min()
            .map(|(_, candidate)| candidate.to_owned())
    }

    fn origin(&self, line: usize) -> Origin {
        self.file.clone().map_or(Origin::Default, |path| Origin::File(path, line))
    }

    fn note(&self, origin: Origin, key: &str, message: String) {
        self.mistakes.borrow_mut().push(Mistake { origin, key: key.to_owned(), message });
    }
}

/// One table of a configuration, possibly absent.
#[derive(Debug, Clone)]
pub struct Section<'s> {
    settings: &'s Settings,
    path: String,
    item: Option<&'s Item>,
}

impl<'s> Section<'s> {
    /// The table `name` below this one; absent tables read as empty ones.
    pub fn section(&self, name: &str) -> Section<'s> {
        let path = self.enter(name);
        let item = self.child(name);
        if let Some(found) = item
            && !matches!(found.node, Node::Table(_))
        {
            self.settings.note(self.settings.origin(found.line), &path, "expected a table".to_owned());
        }
        Section { settings: self.settings, path, item }
    }

    /// The tables below `name`, by the names that the operator gave them.
    pub fn named_sections(&self, name: &str) -> Vec<(String, Section<'s>)> {
        let parent = self.section(name);
        let Some(Item { node: Node::Table(table), .. }) = parent.item else {
            return Vec::new();
        };
        table.keys().map(|key| (key.clone(), parent.section(key))).collect()
    }

    /// The tables of the array `[[name]]`.
    pub fn sections(&self, name: &str) -> Vec<Section<'s>> {
        let path = self.enter(name);
        match self.child(name) {
            None => Vec::new(),
            Some(Item { node: Node::Array(items), .. }) => items
                .iter()
                .enumerate()
                .map(|(index, item)| Section {
                    settings: self.settings,
                    path: format!("{path}[{index}]"),
                    item: Some(item),
                })
                .collect(),
            Some(found) => {
                let message = format!("expected an array of tables, written as [[{name}]]");
                self.settings.note(self.settings.origin(found.line), &path, message);
                Vec::new()
            }
        }
    }

    /// Whether the operator gave this table.
    pub fn is_present(&self) -> bool {
        self.item.is_some()
    }

    /// The value of `key`, or `default`.
    pub fn read<T: Setting>(&self, key: &str, default: T) -> T {
        self.settings.defaults.borrow_mut().push((join(&self.path, key), default.to_text()));
        self.optional(key).unwrap_or(default)
    }

    /// The value of `key`, if it has one.
    pub fn optional<T: Setting>(&self, key: &str) -> Option<T> {
        let path = self.enter(key);
        let (origin, text) = self.lookup::<T>(key, &path)?;
        match T::from_text(&text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.settings.note(origin, &path, format!("expected {}: {reason}", T::EXPECTED));
                None
            }
        }
    }

    /// The value of `key`, which must be there.
    pub fn required<T: Setting>(&self, key: &str) -> Option<T> {
        if !self.has(key) {
            self.mistake(key, format!("is missing; expected {}", T::EXPECTED));
        }
        self.optional(key)
    }

    /// The array under `key`, or `default`. A variable or flag holds its items separated by commas.
    pub fn list<T: Setting>(&self, key: &str, default: Vec<T>) -> Vec<T> {
        let path = self.enter(key);
        let shown = default.iter().map(Setting::to_text).collect::<Vec<_>>().join(",");
        self.settings.defaults.borrow_mut().push((path.clone(), shown));
        if let Some(items) = self.list_override(key) {
            return items;
        }
        match self.child(key) {
            None => default,
            Some(Item { node: Node::Array(items), .. }) => items
                .iter()
                .filter_map(|item| {
                    let origin = self.settings.origin(item.line);
                    match &item.node {
                        Node::Scalar(kind, text) if T::KIND.accepts(*kind) => {
                            self.parse_item(&origin, &path, text)
                        }
                        _ => {
                            self.settings.note(origin, &path, format!("expected {}", T::EXPECTED));
                            None
                        }
                    }
                })
                .collect(),
            Some(found) => {
                let message = format!("expected an array of {}", T::EXPECTED);
                self.settings.note(self.settings.origin(found.line), &path, message);
                default
            }
        }
    }

    /// The items of a flag or variable that replaces the array of tables `name` as a whole, separated
    /// by commas (`CLAWHUB_EDGE_LISTEN`).
    pub fn list_override<T: Setting>(&self, name: &str) -> Option<Vec<T>> {
        let path = self.enter(name);
        let (origin, text) = self.overriding(&path)?;
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Some(items.filter_map(|item| self.parse_item(&origin, &path, item)).collect())
    }

    /// Whether `key` has a value, wherever it comes from.
    pub fn has(&self, key: &str) -> bool {
        self.child(key).is_some() || self.overriding(&join(&self.path, key)).is_some()
    }

    /// Notes that the value of `key` cannot be used, for reasons that only the caller knows.
    pub fn mistake(&self, key: &str, message: impl Into<String>) {
        let path = if key.is_empty() { self.path.clone() } else { join(&self.path, key) };
        let origin = match (self.overriding(&path), self.child(key).or(self.item)) {
            (Some((origin, _)), _) => origin,
            (None, Some(item)) => self.settings.origin(item.line),
            (None, None) => Origin::Default,
        };
        self.settings.note(origin, &path, message.into());
    }

    fn parse_item<T: Setting>(&self, origin: &Origin, path: &str, text: &str) -> Option<T> {
        T::from_text(text)
            .map_err(|reason| {
                self.settings.note(origin.clone(), path, format!("expected {}: {reason}", T::EXPECTED));
            })
            .ok()
    }

    fn lookup<T: Setting>(&self, key: &str, path: &str) -> Option<(Origin, String)> {
        if let Some(found) = self.overriding(path) {
            return Some(found);
        }
        let item = self.child(key)?;
        let origin = self.settings.origin(item.line);
        match &item.node {
            Node::Scalar(kind, text) if T::KIND.accepts(*kind) => return Some((origin, text.clone())),
            // Never the value itself: it may be a password without its quotes.
            Node::Scalar(found, _) => {
                self.settings.note(origin, path, format!("expected {}, found {}", T::EXPECTED, found.name()));
            }
            Node::Array(_) => {
                self.settings.note(origin, path, format!("expected {}, found an array", T::EXPECTED));
            }
            Node::Table(_) => {
                self.settings.note(origin, path, format!("expected {}, found a table", T::EXPECTED));
            }
            Node::Other(what) => {
                self.settings.note(origin, path, format!("expected {}, found {what}", T::EXPECTED));
            }
        }
        None
    }

    fn overriding(&self, path: &str) -> Option<(Origin, String)> {
        if let Some(text) = self.settings.overrides.get(path) {
            return Some((Origin::Flag, text.clone()));
        }
        let variable = variable_of(path);
        let text = self.settings.environment.get(&variable)?;
        Some((Origin::Environment(variable), text.clone()))
    }

    fn child(&self, name: &str) -> Option<&'s Item> {
        match &self.item?.node {
            Node::Table(table) => table.get(name),
            _ => None,
        }
    }

    fn enter(&self, name: &str) -> String {
        let path = join(&self.path, name);
        self.settings.known_variables.borrow_mut().insert(variable_of(&path));
        self.settings.known.borrow_mut().insert(path.clone());
        path
    }
}

/// Kubernetes describes a Service called `clawhub-edge` to every pod of its namespace by variables
/// such as `CLAWHUB_EDGE_SERVICE_HOST` and `CLAWHUB_EDGE_PORT_5050_TCP`.
fn is_service_link(variable: &str) -> bool {
    let rest = variable.strip_prefix(ENV_PREFIX).unwrap_or_default();
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn variable_of(path: &str) -> String {
    let name: String =
        path.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    format!("{ENV_PREFIX}{name}")
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

fn table_item(text: &str, line: usize, table: &DeTable<'_>) -> Item {
    let children = table
        .iter()
        .map(|(key, value)| {
            let line = line_of(text, key.span().start);
            (key.get_ref().to_string(), item(text, line, value.get_ref()))
        })
        .collect();
    Item { line, node: Node::Table(children) }
}

fn item(text: &str, line: usize, value: &DeValue<'_>) -> Item {
    let node = match value {
        DeValue::String(value) => Node::Scalar(Kind::String, value.to_string()),
        DeValue::Integer(value) => match i64::from_str_radix(value.as_str(), value.radix()) {
            Ok(number) => Node::Scalar(Kind::Integer, number.to_string()),
            Err(_) => Node::Other("a number that is too large"),
        },
        DeValue::Boolean(value) => Node::Scalar(Kind::Boolean, value.to_string()),
        DeValue::Float(_) => Node::Other("a number with a fraction"),
        DeValue::Datetime(_) => Node::Other("a date"),
        DeValue::Array(values) => Node::Array(
            values
                .iter()
                .map(|value| item(text, line_of(text, value.span().start), value.get_ref()))
                .collect(),
        ),
        DeValue::Table(table) => return table_item(text, line, table),
    };
    Item { line, node }
}

impl Setting for String {
    const EXPECTED: &'static str = "a string";
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn to_text(&self) -> String {
        self.clone()
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "a path";
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(Self::from(text)) }
    }
    fn to_text(&self) -> String {
        self.display().to_string()
    }
}

impl Setting for Secret {
    const EXPECTED: &'static str = "a string";
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::new(text))
    }
    fn to_text(&self) -> String {
        "[redacted]".to_owned()
    }
}

impl Setting for Duration {
    const EXPECTED: &'static str = "a duration such as \"5m\" or \"1h 30m\"";
    fn from_text(text: &str) -> Result<Self, String> {
        if text == "0" {
            return Ok(Self::ZERO);
        }
        humantime::parse_duration(text).map_err(|error| error.to_string())
    }
    fn to_text(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

/// Settings that are one of a few words.
macro_rules! keyword_setting {
    ($type:ty, $expected:literal, $($word:literal => $variant:path),+ $(,)?) => {
        impl $crate::runtime::Setting for $type {
            const EXPECTED: &'static str = $expected;
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($variant),)+
                    other => Err(format!("found {other:?}")),
                }
            }
            fn to_text(&self) -> String {
                match self {
                    $($variant => $word.to_owned(),)+
                }
            }
        }
    };
}
pub(crate) use keyword_setting;

/// Settings that are read with `FromStr` and shown with `Display`.
macro_rules! setting_by_from_str {
    ($($type:ty, $kind:expr, $expected:literal;)*) => {$(
        impl Setting for $type {
            const EXPECTED: &'static str = $expected;
            const KIND: Kind = $kind;
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse::<$type>().map_err(|error| error.to_string())
            }
            fn to_text(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

setting_by_from_str! {
    bool, Kind::Boolean, "true or false";
    u16, Kind::Integer, "a whole number up to 65535";
    u32, Kind::Integer, "a whole number";
    u64, Kind::Integer, "a whole number";
    usize, Kind::Integer, "a whole number";
    Bytes, Kind::StringOrInteger, "a size such as \"64MiB\"";
    Percent, Kind::String, "a share such as \"25%\"";
    crate::oci::NodeId, Kind::String, "a name such as \"edge-fra-1\"";
    std::net::SocketAddr, Kind::String, "an address with a port such as \"127.0.0.1:5050\" or \"[::1]:5050\"";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Settings {
        Settings::new(
            Some((Path::new("edge.toml"), text)),
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
            flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        )
    }

    #[test]
    fn flags_win_over_variables_over_the_file_over_defaults() {
        let text = "[tags]\nttl = \"1m\"\nswr = \"2m\"\nsie = \"3m\"\n";
        let environment = [("CLAWHUB_EDGE_TAGS_SWR", "20m"), ("CLAWHUB_EDGE_TAGS_SIE", "30m")];
        let settings = read(text, &environment, &[("tags.sie", "300m")]);
        let tags = settings.root().section("tags");
        let minutes = |n: u64| Duration::from_secs(n * 60);
        assert_eq!(tags.read("ttl", minutes(9)), minutes(1));
        assert_eq!(tags.read("swr", minutes(9)), minutes(20));
        assert_eq!(tags.read("sie", minutes(9)), minutes(300));
        assert_eq!(tags.read("negative", minutes(9)), minutes(9));
        settings.finish().unwrap();
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_line() {
        let text = "[store]\nmemroy = \"1GiB\"\nmax = \"lots\"\n\n[[listen]]\naddress = 5\ntypo = 1\n";
        let environment = [("CLAWHUB_EDGE_NONSENSE", "1"), ("CLAWHUB_EDGE_SERVICE_HOST", "10.0.0.1")];
        let settings = read(text, &environment, &[]);
        let store = settings.root().section("store");
        store.read("memory", Bytes::mib(1));
        store.read("max", Bytes::mib(1));
        for listen in settings.root().sections("listen") {
            listen.required::<std::net::SocketAddr>("address");
        }
        let mistakes = settings.finish().unwrap_err().to_string();
        for expected in [
            "edge.toml:2: store.memroy: unknown key; did you mean `memory`?",
            "edge.toml:3: store.max: expected a size such as \"64MiB\"",
            "edge.toml:6: listen[0].address: expected an address",
            "edge.toml:7: listen[0].typo: unknown key",
            "CLAWHUB_EDGE_NONSENSE",
        ] {
            assert!(mistakes.contains(expected), "{expected} is missing in\n{mistakes}");
        }
        assert_eq!(mistakes.lines().count(), 5, "{mistakes}");
    }

    #[test]
    fn syntax_errors_name_their_line() {
        let settings = read("[store\nmemory = 1\n", &[], &[]);
        let mistakes = settings.finish().unwrap_err().to_string();
        assert!(mistakes.contains("edge.toml:1: syntax"), "{mistakes}");
    }

    #[test]
    fn lists_come_from_arrays_and_from_commas() {
        let settings = read("names = [\"a\", \"b\"]\n", &[("CLAWHUB_EDGE_OTHERS", "c, d")], &[]);
        assert_eq!(settings.root().list::<String>("names", vec![]), ["a", "b"]);
        assert_eq!(settings.root().list::<String>("others", vec![]), ["c", "d"]);
        settings.finish().unwrap();
    }
}
