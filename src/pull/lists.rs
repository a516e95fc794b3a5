//! Lists of names, page by page: a repository's tags and an upstream's repositories.
//!
//! Who lists wants to know what is new, so the upstream is always asked; the last page that it gave stands in
//! while it cannot be.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{Error, Freshness, Puller, Served};
use crate::auth::Admitted;
use crate::oci::{Page, Via};
use crate::routing::{Caller, Upstream};
use crate::store::ListRecord;
use crate::upstream::{self, Purpose};

/// One page of a list.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    /// The names, in the upstream's order.
    pub entries: Vec<String>,
    /// Where the next page begins.
    pub next: Option<Page>,
    /// How fresh it is.
    pub freshness: Freshness,
}

/// The names of a page, and where the next one begins.
type Fetched = (Vec<String>, Option<Page>);

impl Puller {
    /// One page of the tags of a repository.
    ///
    /// # Errors
    /// The upstream's, where nothing was kept.
    pub async fn tags(&self, admitted: &Admitted, page: &Page) -> Result<ListAnswer, Error> {
        let route = admitted.route();
        let name = format!("{}/tags?{}", route.repository, page.to_query());
        let (client, asked, page) = (self.client().clone(), route.clone(), page.clone());
        let fetch =
            async move { client.tags(&asked, &page, Purpose::Pull).await.map(|list| (list.tags, list.next)) };
        let caller = route.caller.as_ref();
        self.list("tags", &route.upstream, caller, name, fetch.boxed()).await
    }

    /// One page of the repositories of an upstream. Where it judges its callers, what it shows to one is his alone, and not
    /// kept.
    ///
    /// # Errors
    /// The upstream's, where nothing was kept.
    pub async fn catalog(
        &self,
        upstream: &Arc<Upstream>,
        caller: Option<&Caller>,
        via: &Via,
        page: &Page,
    ) -> Result<ListAnswer, Error> {
        if let Some(caller) = caller {
            let list = self.client().catalog(upstream, via, Some(caller), page).await?;
            self.metrics().count_answer("catalog", Served::Forwarded);
            let freshness = Freshness::of(Served::Forwarded);
            return Ok(ListAnswer { entries: list.repositories, next: list.next, freshness });
        }
        let name = format!("_catalog?{}", page.to_query());
        let (client, asked, via, page) =
            (self.client().clone(), Arc::clone(upstream), via.clone(), page.clone());
        let fetch = async move {
            client.catalog(&asked, &via, None, &page).await.map(|list| (list.repositories, list.next))
        };
        self.list("catalog", upstream, None, name, fetch.boxed()).await
    }

    /// The page `name` of an upstream, by `fetch` on behalf of `caller`, or as it was last given.
    async fn list(
        &self,
        kind: &str,
        upstream: &Arc<Upstream>,
        caller: Option<&Caller>,
        name: String,
        fetch: BoxFuture<'static, Result<Fetched, upstream::Error>>,
    ) -> Result<ListAnswer, Error> {
        let kept = self.store().metadata().list(upstream.name.as_str(), &name).await;
        let caller = caller.map(|caller| caller.id().0);
        let key = format!("{}\0{name}\0{caller:?}", upstream.name);
        let (puller, of) = (self.clone(), Arc::clone(upstream));
        let (fetched, joined) = self.0.list_fetches.run(key, || async move {
            let fetched_at = puller.0.clock.now();
            let (entries, next) = fetch.await?;
            let record =
                Arc::new(ListRecord { entries, next: next.map(|page| (page.n, page.last)), fetched_at });
            puller.store().metadata().set_list(of.name.as_str(), &name, Arc::clone(&record));
            Ok(record)
        });
        let fetched = async { fetched.await.unwrap_or(Err(Error::Internal)) };
        let answer = |record: &ListRecord, served| {
            let age = self.0.clock.now().since(record.fetched_at).unwrap_or(Duration::ZERO);
            self.metrics().count_answer(kind, served);
            ListAnswer {
                entries: record.entries.clone(),
                next: record.next.clone().map(|(n, last)| Page { n, last }),
                freshness: Freshness { served, age, ttl: None },
            }
        };
        let served = if joined { Served::Collapsed } else { Served::Miss };
        let Some(kept) = kept else {
            return fetched.await.map(|record| answer(&record, served));
        };
        match tokio::time::timeout(self.0.tag_config.revalidate_timeout, fetched).await {
            Ok(Ok(record)) => Ok(answer(&record, served)),
            Ok(Err(error)) if !error.is_unavailability() => Err(error),
            Ok(Err(_)) | Err(_) => Ok(answer(&kept, Served::Stale)),
        }
    }
}
