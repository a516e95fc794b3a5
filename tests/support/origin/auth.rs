//! Who may pull: nobody asked, HTTP Basic, or Bearer tokens from the origin's own `/token`
//! (distribution token specification).

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::time::Instant;

use super::content::hex;
use super::registry::Answer;
use super::wire::Request;

/// How the origin's token service behaves.
#[derive(Clone, Debug)]
pub struct BearerConfig {
    /// The realm of the challenge; `None` for `/token` of this origin. Anything else is how a hostile realm is staged.
    pub realm: Option<String>,
    pub service: String,
    /// User names and passwords.
    pub users: Vec<(String, String)>,
    /// Identity tokens, each of which stands for the user of its name.
    pub identity_tokens: Vec<(String, String)>,
    /// Whether an identity token is good for one use, which gives the next one.
    pub rotates: bool,
    /// Whether `GET` is answered with 405.
    pub post_only: bool,
    /// Whether a token request without a credential is granted.
    pub anonymous_allowed: bool,
    /// Announced in seconds and really honoured.
    pub expires_in: Duration,
}

impl Default for BearerConfig {
    fn default() -> Self {
        Self {
            realm: None,
            service: "origin.test".to_owned(),
            users: Vec::new(),
            identity_tokens: Vec::new(),
            rotates: false,
            post_only: false,
            anonymous_allowed: true,
            expires_in: Duration::from_mins(5),
        }
    }
}

struct Token {
    repositories: Vec<String>,
    expires: Instant,
}

#[derive(Default)]
enum Scheme {
    #[default]
    Open,
    /// User names and passwords.
    Basic(Vec<(String, String)>),
    Bearer(BearerConfig),
}

/// The door of one origin.
#[derive(Default)]
pub(super) struct Auth {
    scheme: Scheme,
    tokens: HashMap<String, Token>,
    /// Repository prefixes that only some users may read.
    restricted: Vec<(String, Vec<String>)>,
}

impl Auth {
    pub(super) fn require_nothing(&mut self) {
        self.scheme = Scheme::Open;
    }

    pub(super) fn require_basic(&mut self, users: &[(&str, &str)]) {
        let own = |&(user, password): &(&str, &str)| (user.to_owned(), password.to_owned());
        self.scheme = Scheme::Basic(users.iter().map(own).collect());
    }

    pub(super) fn require_bearer(&mut self, config: BearerConfig) {
        self.scheme = Scheme::Bearer(config);
    }

    pub(super) fn restrict(&mut self, prefix: &str, users: &[&str]) {
        self.restricted.push((prefix.to_owned(), users.iter().map(|user| (*user).to_owned()).collect()));
    }

    pub(super) fn unrestrict(&mut self, prefix: &str) {
        self.restricted.retain(|(restricted, _)| restricted != prefix);
    }

    pub(super) fn revoke_tokens(&mut self) {
        self.tokens.clear();
    }

    /// The refusal of a `/v2/` request, if it is refused; `repository` is `None` for the ping.
    pub(super) fn refusal(&self, request: &Request, repository: Option<&str>, url: &str) -> Option<Answer> {
        match &self.scheme {
            Scheme::Open => None,
            Scheme::Basic(users) => match basic(request) {
                Some(given) if users.contains(&given) => repository
                    .is_some_and(|name| !self.may_read(Some(&given.0), name))
                    .then(|| Answer::error(403, "DENIED", "requested access to the resource is denied")),
                _ => Some(unauthorized(r#"Basic realm="origin""#)),
            },
            Scheme::Bearer(config) => {
                let fault = self.token_fault(request, repository)?;
                Some(unauthorized(&challenge(config, repository, url, fault)))
            }
        }
    }

    /// `None` for a good token, else the challenge's `error` (empty where no token came).
    fn token_fault(&self, request: &Request, repository: Option<&str>) -> Option<&'static str> {
        let Some(token) = credential(request, "Bearer") else {
            return Some("");
        };
        match self.tokens.get(token) {
            Some(token) if token.expires > Instant::now() => repository
                .is_some_and(|name| !token.repositories.iter().any(|granted| granted == name))
                .then_some("insufficient_scope"),
            _ => Some("invalid_token"),
        }
    }

    /// Answers `GET /token` and `POST /token`.
    pub(super) fn issue(&mut self, request: &Request) -> Answer {
        let Scheme::Bearer(config) = &mut self.scheme else {
            return Answer::error(404, "UNSUPPORTED", "this origin issues no tokens");
        };
        let posted = request.method == "POST";
        if !posted && (config.post_only || request.method != "GET") {
            return Answer::error(405, "UNSUPPORTED", "another method");
        }
        let parameter = |name: &str| if posted { request.field(name) } else { request.parameter(name) };
        if parameter("service").is_some_and(|service| service != config.service) {
            return Answer::error(400, "UNSUPPORTED", "another service");
        }
        let refused = || Answer::new(400, "application/json", r#"{"error":"invalid_grant"}"#);
        let mut refresh_token = None;
        let user = match (parameter("grant_type").as_deref(), request.header("authorization"), basic(request))
        {
            (Some("refresh_token"), None, _) => {
                let sent = parameter("refresh_token").unwrap_or_default();
                let Some(known) = config.identity_tokens.iter_mut().find(|(_, token)| *token == sent) else {
                    return refused();
                };
                if config.rotates {
                    known.1 = random();
                }
                refresh_token = Some(known.1.clone());
                Some(known.0.clone())
            }
            (Some("password"), None, _) => {
                let given =
                    (parameter("username").unwrap_or_default(), parameter("password").unwrap_or_default());
                if !config.users.contains(&given) {
                    return refused();
                }
                Some(given.0)
            }
            (None, None, _) if config.anonymous_allowed && !posted => None,
            (None, Some(_), Some(given)) if config.users.contains(&given) && !posted => Some(given.0),
            _ => return unauthorized(r#"Basic realm="token""#),
        };
        let lifetime = config.expires_in;
        let scopes: Vec<_> = if posted {
            request.field("scope").into_iter().collect()
        } else {
            request.parameters("scope").collect()
        };
        let repositories = scopes
            .iter()
            .flat_map(|scopes| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|scope| pulled(&scope).map(str::to_owned))
            .filter(|name| self.may_read(user.as_deref(), name))
            .collect();
        let token = random();
        self.tokens.insert(token.clone(), Token { repositories, expires: Instant::now() + lifetime });
        let mut document = json!({ "token": token, "access_token": token, "expires_in": lifetime.as_secs() });
        if let Some(token) = refresh_token {
            document["refresh_token"] = token.into();
        }
        Answer::json(&document)
    }

    fn may_read(&self, user: Option<&str>, repository: &str) -> bool {
        self.restricted
            .iter()
            .filter(|(prefix, _)| repository.starts_with(prefix.as_str()))
            .all(|(_, users)| user.is_some_and(|user| users.iter().any(|allowed| allowed == user)))
    }
}

fn random() -> String {
    hex(&std::array::from_fn::<u8, 20, _>(|_| fastrand::u8(..)))
}

/// What stands for the catalogue among the repositories of a token.
const CATALOG: &str = "_catalog";

/// The repository of a `repository:<name>:<actions>` scope that asks for pull.
fn pulled(scope: &str) -> Option<&str> {
    if scope == "registry:catalog:*" {
        return Some(CATALOG);
    }
    let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    actions.split(',').any(|action| action == "pull" || action == "*").then_some(name)
}

fn challenge(config: &BearerConfig, repository: Option<&str>, url: &str, fault: &str) -> String {
    let realm = config.realm.clone().unwrap_or_else(|| format!("{url}/token"));
    let mut text = format!(r#"Bearer realm="{realm}",service="{}""#, config.service);
    if repository == Some(CATALOG) {
        text += r#",scope="registry:catalog:*""#;
    } else if let Some(name) = repository {
        text += &format!(r#",scope="repository:{name}:pull""#);
    }
    if !fault.is_empty() {
        text += &format!(r#",error="{fault}""#);
    }
    text
}

fn unauthorized(challenge: &str) -> Answer {
    Answer::error(401, "UNAUTHORIZED", "authentication required").with("WWW-Authenticate", challenge)
}

fn credential<'a>(request: &'a Request, scheme: &str) -> Option<&'a str> {
    let (given, rest) = request.header("authorization")?.split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then_some(rest.trim())
}

fn basic(request: &Request) -> Option<(String, String)> {
    let decoded = STANDARD.decode(credential(request, "Basic")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
