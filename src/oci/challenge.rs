//! `WWW-Authenticate`: how a registry says which token it wants, read leniently and written strictly.
//!
//! Source: RFC 9110 §11.6.1 and RFC 6750 §3; distribution `docs/spec/auth/token.md`. Reading never fails: what
//! is not understood is skipped, because one odd challenge must not hide the usable one beside it.

use std::collections::BTreeMap;
use std::fmt;

/// Most challenges read from one header, and most parameters of one challenge; real ones have two and four.
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMS: usize = 32;

/// How to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// User name and password (RFC 7617).
    Basic,
    /// A token from the token service at `realm` (RFC 6750).
    Bearer,
    /// Anything else, as it was written.
    Other(String),
}

impl Scheme {
    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Basic => "Basic",
            Self::Bearer => "Bearer",
            Self::Other(name) => name,
        }
    }

    fn named(name: &str) -> Self {
        if name.eq_ignore_ascii_case("basic") {
            Self::Basic
        } else if name.eq_ignore_ascii_case("bearer") {
            Self::Bearer
        } else {
            Self::Other(name.to_owned())
        }
    }
}

/// One challenge of a `WWW-Authenticate` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// How to authenticate.
    pub scheme: Scheme,
    /// The parameters by lower-case name, unquoted. Of a repeated one, the first.
    pub params: BTreeMap<String, String>,
}

impl Challenge {
    /// A challenge without parameters.
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, params: BTreeMap::new() }
    }

    /// The challenge with one more parameter, or another value of it. Names are lower-case tokens.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.params.insert(name.to_owned(), value.into());
        self
    }

    /// Every challenge in a header's value, in its order.
    ///
    /// Unquoted values may hold what RFC 9110 wants quoted (URLs, as some registries send them). The
    /// `token68` form of other schemes (`Negotiate YII=`) keeps its scheme and loses its data.
    pub fn parse_all(header_value: &str) -> Vec<Self> {
        let mut challenges: Vec<Self> = Vec::new();
        let mut cursor = Cursor { rest: header_value };
        while cursor.skip_to_element() {
            let name = cursor.token();
            if name.is_empty() {
                cursor.skip_element();
            } else if let Some(value) = cursor.param_value() {
                // A parameter before any scheme belongs to nothing.
                if let Some(challenge) = challenges.last_mut()
                    && challenge.params.len() < MAX_PARAMS
                {
                    challenge.params.entry(name.to_ascii_lowercase()).or_insert(value);
                }
            } else if challenges.len() < MAX_CHALLENGES {
                challenges.push(Self::new(Scheme::named(name)));
                cursor.skip_token68();
            } else {
                break;
            }
        }
        challenges
    }

    /// Of a bearer challenge: the URL of the token service. The sender's word; check it before dialling it.
    pub fn realm(&self) -> Option<&str> {
        self.param("realm")
    }

    /// The audience to name to the token service.
    pub fn service(&self) -> Option<&str> {
        self.param("service")
    }

    /// What rights the request needs; several are separated by spaces.
    pub fn scope(&self) -> Option<&str> {
        self.param("scope")
    }

    fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }
}

/// As a header's value: every parameter quoted, `realm`, `service`, `scope` first as all registries write
/// them. Control characters, which would split the header, are left out.
impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FIRST: [&str; 3] = ["realm", "service", "scope"];
        f.write_str(self.scheme.as_str())?;
        let first = FIRST.iter().filter_map(|name| self.params.get_key_value(*name));
        let others = self.params.iter().filter(|(name, _)| !FIRST.contains(&name.as_str()));
        for (index, (name, value)) in first.chain(others).enumerate() {
            let separator = if index == 0 { " " } else { "," };
            write!(f, "{separator}{name}={}", Quoted(value))?;
        }
        Ok(())
    }
}

/// A quoted-string (RFC 9110 §5.6.4).
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}

/// What is still to be read. Every step but a failed look-ahead makes it shorter.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    /// Skips separators; false at the end.
    fn skip_to_element(&mut self) -> bool {
        self.rest = self.rest.trim_start_matches([' ', '\t', ',']);
        !self.rest.is_empty()
    }

    /// The token here, perhaps empty (RFC 9110 §5.6.2).
    fn token(&mut self) -> &'a str {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        self.take_while(is_token)
    }

    /// The value of a parameter whose name was just read; `None`, and nothing read, if it was a scheme.
    fn param_value(&mut self) -> Option<String> {
        let after = self.rest.trim_start_matches(BLANKS).strip_prefix('=')?;
        let value = after.trim_start_matches(BLANKS);
        if let Some(quoted) = value.strip_prefix('"') {
            self.rest = quoted;
            return Some(self.quoted_rest());
        }
        self.rest = value;
        Some(self.take_while(|c| !matches!(c, ' ' | '\t' | ',')).to_owned())
    }

    /// What follows an opening quote, unescaped, up to the closing one or the end.
    fn quoted_rest(&mut self) -> String {
        let mut value = String::new();
        let mut chars = self.rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => value.extend(chars.next()),
                c => value.push(c),
            }
        }
        self.rest = chars.as_str();
        value
    }

    /// After a scheme: skips one `token68`, but not a parameter (RFC 9110 §11.2).
    fn skip_token68(&mut self) {
        let ahead = self.rest.trim_start_matches(BLANKS);
        let is_token68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let after = ahead.trim_start_matches(is_token68).trim_start_matches('=');
        let is_whole_element =
            after.trim_start_matches(BLANKS).is_empty() || after.trim_start().starts_with(',');
        if is_whole_element && ahead.len() < self.rest.len() {
            self.rest = after;
        }
    }

    /// Skips what cannot begin an element.
    fn skip_element(&mut self) {
        if let Some(quoted) = self.rest.strip_prefix('"') {
            self.rest = quoted;
            self.quoted_rest();
        } else {
            let mut chars = self.rest.chars();
            chars.next();
            self.rest = chars.as_str();
        }
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }
}

const BLANKS: [char; 2] = [' ', '\t'];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(header: &str) -> Vec<(String, Vec<(String, String)>)> {
        let flat = |challenge: Challenge| {
            (challenge.scheme.as_str().to_owned(), challenge.params.into_iter().collect::<Vec<_>>())
        };
        Challenge::parse_all(header).into_iter().map(flat).collect()
    }

    fn expected(scheme: &str, params: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
        let params = params.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        (scheme.to_owned(), params)
    }

    #[test]
    fn the_challenges_of_real_registries_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#;
        let challenge = &Challenge::parse_all(hub)[0];
        assert_eq!(challenge.scheme, Scheme::Bearer);
        assert_eq!(challenge.realm(), Some("https://auth.docker.io/token"));
        assert_eq!(challenge.service(), Some("registry.docker.io"));
        assert_eq!(challenge.scope(), Some("repository:library/nginx:pull,push"));
        assert_eq!(challenge.to_string(), hub);
    }

    #[test]
    fn odd_spellings_are_read_and_what_means_nothing_is_skipped() {
        let cases = [
            ("", vec![]),
            (" , ,", vec![]),
            ("Basic", vec![expected("Basic", &[])]),
            (r#"BASIC realm="a b""#, vec![expected("Basic", &[("realm", "a b")])]),
            (
                r#"Basic realm="x", Bearer Realm = "y" , service=z"#,
                vec![
                    expected("Basic", &[("realm", "x")]),
                    expected("Bearer", &[("realm", "y"), ("service", "z")]),
                ],
            ),
            (
                "Bearer realm=https://h/t?a=b,service=s",
                vec![expected("Bearer", &[("realm", "https://h/t?a=b"), ("service", "s")])],
            ),
            (
                r#"Negotiate YII/+x==, NTLM, Basic realm="q\"\\,""#,
                vec![
                    expected("Negotiate", &[]),
                    expected("NTLM", &[]),
                    expected("Basic", &[("realm", "q\"\\,")]),
                ],
            ),
            (r#"Bearer realm="open"#, vec![expected("Bearer", &[("realm", "open")])]),
            (r#"Bearer realm="a",realm="b""#, vec![expected("Bearer", &[("realm", "a")])]),
            (r#"realm="a", Basic"#, vec![expected("Basic", &[])]),
            (r#""x" ==, Basic"#, vec![expected("Basic", &[])]),
            (
                "Digest, Bearer realm=x,scope=",
                vec![expected("Digest", &[]), expected("Bearer", &[("realm", "x"), ("scope", "")])],
            ),
        ];
        for (header, challenges) in cases {
            assert_eq!(parse(header), challenges, "{header}");
        }
    }

    #[test]
    fn a_value_cannot_split_the_header() {
        let challenge = Challenge::new(Scheme::Bearer).with("realm", "a\r\nSet-Cookie: x\"");
        assert_eq!(challenge.to_string(), r#"Bearer realm="aSet-Cookie: x\"""#);
    }

    #[test]
    fn a_hostile_header_yields_few_challenges() {
        assert_eq!(Challenge::parse_all(&"a,".repeat(10_000)).len(), MAX_CHALLENGES);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            params in prop::collection::btree_map("[a-z][a-z0-9_-]{0,6}", "[^\\p{Cc}]{0,12}", 0..5),
            second in prop::collection::btree_map("[a-z]{1,6}", "[ -~]{0,12}", 0..3),
        ) {
            let challenges = vec![
                Challenge { scheme: Scheme::Bearer, params },
                Challenge { scheme: Scheme::Other("Custom".to_owned()), params: second },
            ];
            let header = format!("{}, {}", challenges[0], challenges[1]);
            prop_assert_eq!(Challenge::parse_all(&header), challenges);
        }

        #[test]
        fn any_header_is_read_without_panic(header in "([A-Za-z]{0,6}[ =,\"\\\\]{0,3}){0,8}|\\PC{0,40}") {
            let _ = Challenge::parse_all(&header);
        }
    }
}
