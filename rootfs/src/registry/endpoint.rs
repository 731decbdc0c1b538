//! One registry, or a mirror of one: where it is, and who asks it.
//!
//! Used by images. Finds out once whether an insecure registry speaks https or http, answers
//! challenges, and tells apart what a refusal means.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use url::Url;

use super::Shared;
use super::auth::{self, Authorization, Challenge, Scope};
use super::error::{Failure, RegistryError};
use super::transport::{Answer, Get, Trust};
use crate::import::options::Credentials;
use crate::source::RegistryReference;

/// How insecure registries turned out to be spoken to.
pub(super) type Schemes = Mutex<HashMap<String, &'static str>>;

/// A place where an image of a registry may be.
pub(super) struct Endpoint {
    /// The name in policies.
    name: String,
    /// Where it is really.
    address: String,
    repository: String,
    trust: Trust,
    credentials: Option<Credentials>,
    /// Whether there is another one to ask.
    pub(super) is_mirror: bool,
    /// The image as it was asked for, for errors.
    image: String,
}

impl Endpoint {
    /// The places of an image: mirrors in the order of the policy, and the registry itself.
    pub(super) fn all(
        shared: &Shared,
        reference: &RegistryReference,
        credentials: Option<&Credentials>,
        image: &str,
    ) -> Vec<Self> {
        let named = reference.registry.as_ref();
        let registry = named.unwrap_or(&shared.policy.default_registry);
        let repository = reference.repository_at(registry);
        let mut all: Vec<_> = mirrors(&shared.policy.mirrors, registry)
            .map(|mirror| {
                let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
                let prefix = prefix.trim_matches('/');
                let repository = match prefix {
                    "" => repository.clone(),
                    prefix => format!("{prefix}/{repository}"),
                };
                Self {
                    name: host.to_owned(),
                    address: host.to_owned(),
                    repository,
                    trust: shared.transport.trust(host),
                    credentials: None,
                    is_mirror: true,
                    image: image.to_owned(),
                }
            })
            .collect();
        all.push(Self {
            name: registry.clone(),
            address: address(registry).to_owned(),
            trust: shared.transport.trust(registry),
            repository,
            credentials: credentials.cloned(),
            is_mirror: false,
            image: image.to_owned(),
        });
        all
    }

    /// Fetches `manifests/NAME` or `blobs/DIGEST`, from a byte on. Only an answer that brings it
    /// is one.
    pub(super) async fn get(
        &self,
        shared: &Shared,
        path: &str,
        accept: Option<&str>,
        offset: u64,
    ) -> Result<Answer, Failure> {
        let (scheme, other) = self.schemes(shared);
        let first = self.get_by(shared, scheme, path, accept, offset).await;
        let (scheme, answered) = match (first, other) {
            (Err(failure), Some(other)) if failure.is_unreachable() => {
                tracing::debug!(registry = self.name, error = %failure.error, "trying {other}");
                let second = self.get_by(shared, other, path, accept, offset).await;
                (other, second)
            }
            (first, _) => (scheme, first),
        };
        match &answered {
            Err(failure) if failure.is_unreachable() => {}
            _ => self.remember(shared, scheme),
        }
        answered
    }

    async fn get_by(
        &self,
        shared: &Shared,
        scheme: &str,
        path: &str,
        accept: Option<&str>,
        offset: u64,
    ) -> Result<Answer, Failure> {
        let place = format!("{scheme}://{}/v2/{}/{path}", self.address, self.repository);
        let url = Url::parse(&place)
            .map_err(|error| Failure::protocol(&self.name, format!("it has no URL: {error}")))?;
        let scope = self.scope();
        let request = |authorization| Get {
            url: url.clone(),
            trust: &self.trust,
            authorization,
            accept,
            offset,
        };
        let known = shared.tokens.get(&scope);
        let answer = shared.transport.get(&request(known.as_ref())).await?;
        // Only the registry itself may ask who we are: not where it redirects to.
        if answer.status() != 401 || !answer.is_from(&url) {
            return self.accepted(answer, &url, known.as_ref()).await;
        }
        shared.tokens.forget(&scope);
        let Some(who) = self.authorize(shared, &url, &answer).await? else {
            return self.accepted(answer, &url, known.as_ref()).await;
        };
        let answer = shared.transport.get(&request(Some(&who))).await?;
        self.accepted(answer, &url, Some(&who)).await
    }

    /// Answers the challenge of a registry; `None` when there is nothing to answer with.
    async fn authorize(
        &self,
        shared: &Shared,
        url: &Url,
        answer: &Answer,
    ) -> Result<Option<Authorization>, Failure> {
        let credentials = self.credentials.as_ref();
        let (who, life) = match auth::challenge(answer.headers()) {
            None => return Ok(None),
            Some(Challenge::Basic) => match credentials {
                None => return Ok(None),
                Some(who) => {
                    let day = std::time::Duration::from_secs(24 * 60 * 60);
                    (Authorization::Basic(who.clone()), day)
                }
            },
            Some(Challenge::Bearer { realm, service }) => {
                let challenge = (&*realm, service.as_deref());
                let repository = &self.repository;
                auth::token(&shared.transport, url, challenge, repository, credentials)
                    .await
                    .map_err(|failure| self.explained(failure))?
            }
        };
        shared.tokens.put(self.scope(), who.clone(), life);
        Ok(Some(who))
    }

    async fn accepted(
        &self,
        answer: Answer,
        url: &Url,
        who: Option<&Authorization>,
    ) -> Result<Answer, Failure> {
        let status = answer.status().as_u16();
        if matches!(status, 200 | 206) {
            return Ok(answer);
        }
        let was_told = matches!(who, Some(Authorization::Basic(_))) && answer.is_from(url);
        if status == 401 && was_told {
            let host = answer.host();
            return Err(Failure::lasting(RegistryError::Credentials { host }));
        }
        Err(self.explained(answer.failure().await))
    }

    /// What is missing is the image, whatever URL was asked for it.
    fn explained(&self, failure: Failure) -> Failure {
        match failure.error {
            RegistryError::Missing { .. } => Failure::lasting(RegistryError::Missing {
                url: self.image.clone(),
            }),
            _ => failure,
        }
    }

    fn scope(&self) -> Scope {
        let user = self.credentials.as_ref();
        Scope {
            host: self.address.clone(),
            repository: self.repository.clone(),
            user: user.map(|who| (who.username.clone(), who.password.clone())),
        }
    }

    /// How to speak to it, and how else if that does not work.
    fn schemes(&self, shared: &Shared) -> (&'static str, Option<&'static str>) {
        if self.trust != Trust::Anybody {
            return ("https", None);
        }
        let known = (shared.schemes.lock()).unwrap_or_else(PoisonError::into_inner);
        match known.get(&self.address) {
            Some(scheme) => (scheme, None),
            None => ("https", Some("http")),
        }
    }

    fn remember(&self, shared: &Shared, scheme: &'static str) {
        if self.trust == Trust::Anybody {
            let mut known = shared
                .schemes
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            known.insert(self.address.clone(), scheme);
        }
    }

    /// Its name, for logs.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn mirrors<'a>(
    all: &'a BTreeMap<String, Vec<String>>,
    registry: &str,
) -> impl Iterator<Item = &'a str> {
    all.get(registry).into_iter().flatten().map(String::as_str)
}

/// Docker's registry is not where its name says.
fn address(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    }
}
