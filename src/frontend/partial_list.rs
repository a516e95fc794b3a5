//! Lists of which only some is to be shown.
//!
//! A link to the next page names where that begins, and must not name what is hidden. So the upstream's pages are read
//! until one has something to show, and the next page begins behind that.

use super::respond::Refusal;
use crate::oci::Page;
use crate::pull::ListAnswer;

/// Names that are asked for at once: most of them are hidden.
const FULL_PAGE: u32 = 1000;
/// Pages that are read for one answer.
const MAX_PAGES: usize = 100;

/// One answer on its way.
pub(super) struct PartialList {
    /// What to ask the upstream for.
    asked: Page,
    /// How many names the client wants.
    wanted: Option<u32>,
    is_partial: bool,
    pages: usize,
}

impl PartialList {
    pub(super) fn new(page: &Page, is_partial: bool) -> Self {
        let wanted = page.n.filter(|_| is_partial).map(|n| n.max(1));
        let n = if is_partial { Some(wanted.unwrap_or_default().max(FULL_PAGE)) } else { page.n };
        Self { asked: Page { n, last: page.last.clone() }, wanted, is_partial, pages: 0 }
    }

    pub(super) fn asked(&self) -> &Page {
        &self.asked
    }

    /// What is shown of a page of the upstream's; `None` if the next one has to be asked for.
    ///
    /// # Errors
    /// A refusal, where so many pages have nothing to show that this is not the time for more.
    pub(super) fn shown(
        &mut self,
        mut list: ListAnswer,
        shows: impl Fn(&str) -> bool,
    ) -> Result<Option<ListAnswer>, Refusal> {
        if !self.is_partial {
            return Ok(Some(list));
        }
        self.pages += 1;
        let next = list.next.take();
        list.entries.retain(|entry| shows(entry));
        let most = self.wanted.map_or(usize::MAX, |n| n as usize);
        let has_more = next.is_some() || list.entries.len() > most;
        list.entries.truncate(most);
        match (list.entries.last(), next) {
            (Some(last), _) if has_more => {
                list.next = Some(Page { n: self.wanted, last: Some(last.clone()) });
            }
            (None, Some(_)) if self.pages == MAX_PAGES => return Err(Refusal::overload()),
            (None, Some(next)) => {
                self.asked.last = next.last;
                return Ok(None);
            }
            _ => {}
        }
        Ok(Some(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::{Freshness, Served};
    use std::time::Duration;

    fn page(n: Option<u32>, last: Option<&str>) -> Page {
        Page { n, last: last.map(str::to_owned) }
    }

    /// An upstream with names of `size` a page, however many are asked for.
    fn answer(names: &[&str], size: usize, asked: &Page) -> ListAnswer {
        let rest: Vec<_> =
            names.iter().filter(|name| asked.last.as_deref().is_none_or(|last| **name > last)).collect();
        let entries: Vec<_> = rest.iter().take(size).map(|name| (**name).to_owned()).collect();
        let next = (rest.len() > size).then(|| page(asked.n, entries.last().map(String::as_str)));
        let freshness = Freshness { served: Served::Miss, age: Duration::ZERO, ttl: None };
        ListAnswer { entries, next, freshness }
    }

    /// Every name that a client sees who follows the links, in answers and in links.
    fn seen(n: Option<u32>, size: usize, is_partial: bool) -> Vec<String> {
        let names = ["a/1", "b/1", "b/2", "c/1", "d/1", "d/2", "d/3"];
        let shows = |name: &str| name.starts_with("b/") || name.starts_with("d/");
        let (mut seen, mut next) = (Vec::new(), Some(page(n, None)));
        while let Some(wanted) = next {
            let mut reading = PartialList::new(&wanted, is_partial);
            let list = loop {
                let list = answer(&names, size, reading.asked());
                if let Some(list) = reading.shown(list, shows).unwrap() {
                    break list;
                }
            };
            seen.extend(list.entries);
            next = list.next;
            seen.extend(next.as_ref().and_then(|next| next.last.clone()));
        }
        seen.dedup();
        seen
    }

    #[test]
    fn nothing_hidden_is_named_in_any_link_and_nothing_shown_is_lost() {
        for n in [None, Some(0), Some(1), Some(2), Some(100)] {
            for size in [1, 2, 3, 100] {
                assert_eq!(seen(n, size, true), ["b/1", "b/2", "d/1", "d/2", "d/3"], "{n:?} {size}");
            }
        }
        assert_eq!(seen(None, 100, false).len(), 7, "what is shown as a whole is not looked at");
    }

    #[test]
    fn a_list_without_an_end_has_one() {
        let mut reading = PartialList::new(&page(None, None), true);
        let endless = || answer(&["a", "b"], 1, &page(None, None));
        for _ in 1..MAX_PAGES {
            assert!(reading.shown(endless(), |_| false).unwrap().is_none());
        }
        assert!(reading.shown(endless(), |_| false).is_err());
    }
}
