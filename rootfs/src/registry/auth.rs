//! Who asks: challenges and tokens.
//!
//! Distribution's token authentication: a registry that answers 401 names a service that gives
//! tokens for a scope, with or without credentials. Tokens are kept for as long as they say, for
//! one repository and one user. Used by endpoints.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;
use url::Url;

use super::error::{Failure, RegistryError};
use super::transport::{Get, Transport, host_of};
use crate::import::options::Credentials;

/// The most bytes of a token and what comes with it.
const TOKEN: u64 = 1 << 20;
/// How long a token is good that does not say it.
const USUAL_LIFE: u64 = 60;
/// The longest that a token is kept.
const LONGEST_LIFE: u64 = 24 * 60 * 60;
/// How long before its end a token is not used any more.
const MARGIN: u64 = 5;

/// What a request says about who asks.
#[derive(Clone)]
pub(super) enum Authorization {
    Bearer(String),
    Basic(Credentials),
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bearer(_) => "Bearer",
            Self::Basic(_) => "Basic",
        })
    }
}

/// What a registry wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Bearer {
        realm: String,
        service: Option<String>,
    },
    Basic,
}

/// What a token is for: server, repository, and whose it is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) user: Option<(String, String)>,
}

/// Tokens that are still good.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<Scope, Kept>>);

struct Kept {
    authorization: Authorization,
    until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Tokens {
    pub(super) fn get(&self, scope: &Scope) -> Option<Authorization> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(scope)?;
        (found.until > Instant::now()).then(|| found.authorization.clone())
    }

    pub(super) fn put(&self, scope: Scope, authorization: Authorization, life: Duration) {
        let now = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, other| other.until > now);
        let until = now + life;
        kept.insert(
            scope,
            Kept {
                authorization,
                until,
            },
        );
    }

    pub(super) fn forget(&self, scope: &Scope) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(scope);
    }
}

/// Reads the challenge of an answer: tokens if there is a choice.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    let mut basic = None;
    for value in values.filter_map(|value| value.to_str().ok()) {
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let parameter = |name: &str| {
                let mut all = challenge.params.iter();
                all.find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.to_unescaped())
            };
            if let Some(realm) = parameter("realm") {
                let service = parameter("service");
                return Some(Challenge::Bearer { realm, service });
            }
        }
    }
    basic
}

/// Asks the token service for a token to pull from a repository, and how long it is good.
pub(super) async fn token(
    transport: &Transport,
    registry: &Url,
    challenge: (&str, Option<&str>),
    repository: &str,
    credentials: Option<&Credentials>,
) -> Result<(Authorization, Duration), Failure> {
    let (realm, service) = challenge;
    let wrong = |what: &str| Failure::protocol(crate::source::shown(registry.as_str()), what);
    let mut url = Url::parse(realm).map_err(|_| wrong("its token service has no valid URL"))?;
    match (registry.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        _ => return Err(wrong("its token service is not at an https URL")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("the URL of its token service names a user"));
    }
    url.query_pairs_mut()
        .extend_pairs(service.map(|service| ("service", service)))
        .append_pair("scope", &format!("repository:{repository}:pull"));
    let trust = transport.trust(&host_of(&url));
    let who = credentials.cloned().map(Authorization::Basic);
    let get = Get {
        url,
        trust: &trust,
        authorization: who.as_ref(),
        accept: Some("application/json"),
        offset: 0,
    };
    let mut answer = transport.get(&get).await?;
    match answer.status().as_u16() {
        200 => {}
        400 | 401 | 403 if credentials.is_some() => {
            let host = answer.host();
            return Err(Failure::lasting(RegistryError::Credentials { host }));
        }
        _ => return Err(answer.failure().await),
    }
    let body = answer.bytes(TOKEN).await?;
    let useless = |what: &str| Failure::protocol(answer.shown(), what);
    let parsed: TokenAnswer =
        serde_json::from_slice(&body).map_err(|_| useless("it is no token"))?;
    let token = (parsed.token.filter(|token| !token.is_empty())).or(parsed.access_token);
    let token = token.ok_or_else(|| useless("there is no token in it"))?;
    let life = parsed.expires_in.unwrap_or(USUAL_LIFE).min(LONGEST_LIFE);
    let life = Duration::from_secs(life.saturating_sub(MARGIN));
    Ok((Authorization::Bearer(token), life))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenge(&headers)
    }

    #[test]
    fn forms_of_challenges() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        let usual = r#"Bearer realm="https://a/t",service="r",scope="repository:x:pull""#;
        assert_eq!(read(&[usual]), bearer("https://a/t", Some("r")));
        assert_eq!(read(&["bearer Realm=\"x\""]), bearer("x", None));
        assert_eq!(read(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(
            read(&["Basic realm=\"x\"", usual]),
            bearer("https://a/t", Some("r"))
        );
        let both = format!("Basic realm=\"x\", {usual}");
        assert_eq!(read(&[&both]), bearer("https://a/t", Some("r")));
        assert_eq!(read(&["Bearer service=\"x\""]), None);
        assert_eq!(read(&["Negotiate"]), None);
        assert_eq!(read(&["\"\"\",,,"]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn tokens_are_kept_for_whom_they_are() {
        let tokens = Tokens::default();
        let scope = |user: Option<&str>| Scope {
            host: "h".to_owned(),
            repository: "r".to_owned(),
            user: user.map(|user| (user.to_owned(), "p".to_owned())),
        };
        let bearer = Authorization::Bearer("secret".to_owned());
        assert_eq!(format!("{bearer:?}"), "Bearer");
        tokens.put(scope(Some("a")), bearer.clone(), Duration::from_secs(60));
        assert!(tokens.get(&scope(Some("a"))).is_some());
        assert!(tokens.get(&scope(Some("b"))).is_none());
        assert!(tokens.get(&scope(None)).is_none());
        tokens.put(scope(None), bearer, Duration::ZERO);
        assert!(tokens.get(&scope(None)).is_none());
        tokens.forget(&scope(Some("a")));
        assert!(tokens.get(&scope(Some("a"))).is_none());
    }
}
