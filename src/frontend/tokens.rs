//! The token service (distribution `docs/spec/auth/token.md` and `oauth.md`), and the challenges that lead to it.
//!
//! A request for a token names no upstream: `repository:library/nginx:pull` is the same of Docker Hub and of Quay. So the
//! realm of a challenge names it, as `/token/<upstream>`. The one at the base of the API names none, and then the
//! repository does, as in a pull.

use std::net::IpAddr;
use std::time::Duration;

use form_urlencoded::parse;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use tokio::time::timeout;

use super::client::Client;
use super::respond::Refusal;
use super::service::{Answer, JSON, Service, host};
use crate::auth::{Auth, Right, SERVICE, TOKEN_LIFETIME};
use crate::oci::{ApiRequest, Challenge, PullScope, Scheme, Target};
use crate::routing::{Login, Site};
use crate::runtime::Secret;

const TOKEN: &str = "/token";
const JWKS: &str = "/.well-known/jwks.json";
/// A form has a login, which may be a cloud's token, and some scopes.
const MAX_FORM: usize = 64 << 10;
/// How long a form may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// Scopes that are looked at; clients ask for one, or for two where they push.
const MAX_SCOPES: usize = 16;

/// What a token is asked for with.
struct TokenRequest {
    login: Option<Login>,
    scopes: Vec<PullScope>,
    /// Whether something is wanted to get the next one with.
    is_offline: bool,
}

/// Whether a path is the token service's.
pub(super) fn is_path(path: &str) -> bool {
    let after = path.strip_prefix(TOKEN);
    after.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) || path == JWKS
}

impl Service {
    /// Answers a request to the token service.
    pub(super) async fn token_answer(&self, parts: &Parts, body: Incoming, client: &Client) -> Answer {
        let from = client.address(&parts.headers);
        let answer = match (&parts.method, parts.uri.path()) {
            (&Method::GET | &Method::HEAD, JWKS) => {
                return Answer::text(StatusCode::OK, JSON, self.auth().jwks());
            }
            (&Method::GET, path) if path != JWKS => self.issue(parts, from, query(parts)).await,
            (&Method::POST, path) if path != JWKS => match form(parts, body).await {
                Ok(request) => self.issue(parts, from, Ok(request)).await,
                Err(error) => Ok(oauth_error(error)),
            },
            _ => {
                let answer = Answer::from(Refusal::unsupported_method());
                return answer.header(header::ALLOW, "GET, POST");
            }
        };
        answer.unwrap_or_else(Answer::from).header(header::CACHE_CONTROL, "no-store")
    }

    async fn issue(
        &self,
        parts: &Parts,
        from: Option<IpAddr>,
        request: Result<TokenRequest, Refusal>,
    ) -> Result<Answer, Refusal> {
        let named = parts.uri.path().strip_prefix(TOKEN).and_then(|path| path.strip_prefix('/'));
        let named = named.filter(|name| !name.is_empty());
        if named.is_some() {
            self.routes().upstream(named, None).map_err(|error| Refusal::from(&error))?;
        }
        let TokenRequest { login, scopes, is_offline } = request?;
        // What nobody here has is left out, as everything that is not granted.
        let right = |scope: &PullScope| match scope {
            PullScope::Repository(repository) => {
                self.routes().find(named, host(parts), repository).ok().map(Right::Pull)
            }
            PullScope::Catalog => {
                self.routes().upstream(named, host(parts)).ok().cloned().map(Right::Catalog)
            }
        };
        let rights: Vec<Right> = scopes.iter().filter_map(right).collect();
        let issued = self.auth().issue(login, from, &rights).await;
        let issued = issued.map_err(|denial| Refusal::of_denial(&denial, SERVICE))?;
        let mut document = serde_json::json!({
            "token": issued.token.expose(),
            "access_token": issued.token.expose(),
            "expires_in": TOKEN_LIFETIME.as_secs(),
            "issued_at": issued.issued_at.to_string(),
        });
        if let Some(refresh_token) = issued.refresh_token.filter(|_| is_offline) {
            document["refresh_token"] = refresh_token.expose().into();
        }
        Ok(Answer::text(StatusCode::OK, JSON, document.to_string()))
    }

    /// How a client gets what a request needs; `error` is what is wrong with the token that it has sent. `None` where it
    /// is not known how clients call this edge.
    pub(super) fn challenge(
        &self,
        parts: &Parts,
        client: &Client,
        request: &ApiRequest,
        error: Option<&'static str>,
    ) -> Option<Challenge> {
        let (ns, host) = (request.ns.as_deref(), host(parts));
        let (upstream, scope) = match &request.target {
            Target::Catalog { .. } => {
                (self.routes().upstream(ns, host).ok().cloned(), Some("registry:catalog:*".to_owned()))
            }
            target => match target.repository() {
                Some(repository) => {
                    let route = self.routes().find(ns, host, repository).ok();
                    (route.map(|route| route.upstream), Some(format!("repository:{repository}:pull")))
                }
                None => (host.and_then(|host| self.routes().of_host(host)).cloned(), None),
            },
        };
        let site = match self.external_url() {
            Some(site) => site.clone(),
            None => called(client, parts, host?)?,
        };
        let realm = match upstream {
            Some(upstream) => format!("{site}{TOKEN}/{}", upstream.name),
            None => format!("{site}{TOKEN}"),
        };
        let challenge = Challenge::new(Scheme::Bearer).with("realm", realm).with("service", SERVICE);
        let further = [("scope", scope), ("error", error.map(str::to_owned))];
        let further = further.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Some(further.fold(challenge, |challenge, (name, value)| challenge.with(name, value)))
    }
}

/// What the client calls this edge; behind a trusted proxy, by the scheme that this has seen.
fn called(client: &Client, parts: &Parts, host: &str) -> Option<Site> {
    let is_proxied = client.source.is_trusted(&client.trusted_proxies);
    let forwarded = parts.headers.get_all("x-forwarded-proto").iter().next_back().filter(|_| is_proxied);
    // The last one was written by the proxy that we know.
    let scheme = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    let is_secure = match scheme {
        Some(scheme) => scheme.trim().eq_ignore_ascii_case("https"),
        None => client.tls.is_some(),
    };
    format!("{}://{host}", if is_secure { "https" } else { "http" }).parse().ok()
}

/// A request by `GET`: parameters, and a login in the headers.
fn query(parts: &Parts) -> Result<TokenRequest, Refusal> {
    let login = Auth::login(&parts.headers).map_err(|denial| Refusal::of_denial(&denial, SERVICE))?;
    let query = parts.uri.query().unwrap_or_default();
    let is_offline = parse(query.as_bytes()).any(|(name, value)| name == "offline_token" && value == "true");
    Ok(TokenRequest { login, scopes: scopes(query.as_bytes()), is_offline })
}

/// A request by `POST` of a form; the error is one of OAuth 2.0 (RFC 6749, section 5.2).
async fn form(parts: &Parts, body: Incoming) -> Result<TokenRequest, &'static str> {
    let body = timeout(PATIENCE, Limited::new(body, MAX_FORM).collect()).await;
    let form = body.map_err(|_| "invalid_request")?.map_err(|_| "invalid_request")?.to_bytes();
    let field = |name: &str| parse(&form).find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let login = match field("grant_type").as_deref() {
        Some("password") => {
            let (username, password) = (field("username").ok_or("invalid_request")?, field("password"));
            Some(Login::password(&username, Secret::new(password.ok_or("invalid_request")?)))
        }
        Some("refresh_token") => {
            Some(Login::IdentityToken(Secret::new(field("refresh_token").ok_or("invalid_request")?)))
        }
        Some(_) => return Err("unsupported_grant_type"),
        None => return Err("invalid_request"),
    };
    // Two logins would be one too many.
    match Auth::login(&parts.headers) {
        Ok(None) => {
            let is_offline = field("access_type").is_some_and(|kind| kind == "offline");
            Ok(TokenRequest { login, scopes: scopes(&form), is_offline })
        }
        Ok(Some(_)) | Err(_) => Err("invalid_request"),
    }
}

fn scopes(parameters: &[u8]) -> Vec<PullScope> {
    let values = parse(parameters).filter(|(name, _)| name == "scope").map(|(_, value)| value);
    values.flat_map(|value| PullScope::parse_all(&value).collect::<Vec<_>>()).take(MAX_SCOPES).collect()
}

fn oauth_error(error: &str) -> Answer {
    let document = serde_json::json!({ "error": error }).to_string();
    Answer::text(StatusCode::BAD_REQUEST, JSON, document)
}
