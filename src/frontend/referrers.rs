//! One page of what refers to a manifest, as an OCI index. Pure.

use crate::oci::{Descriptor, ImageIndex, Page};

/// The most that a page takes, in bytes of JSON: clients read an index of up to 4 MiB like any manifest.
const LONGEST_PAGE: usize = 3 << 20;

/// A page of a list of referrers.
#[derive(Debug)]
pub(super) struct ReferrersPage {
    /// An OCI index.
    pub(super) document: String,
    /// Where the next page begins, if there is one; its `last` is the digest of this one's last entry.
    pub(super) next: Option<Page>,
}

/// The part of `all` that is of this type and on this page. A page whose `last` is no entry any more begins at
/// the front: an entry that comes twice does less harm than a signature that does not come.
pub(super) fn page(all: &[Descriptor], artifact_type: Option<&str>, page: &Page) -> ReferrersPage {
    let is_wanted = |entry: &&Descriptor| {
        artifact_type.is_none_or(|wanted| entry.artifact_type.as_deref() == Some(wanted))
    };
    let after = page.last.as_ref().and_then(|last| {
        all.iter().position(|entry| entry.digest.to_string() == *last).map(|position| position + 1)
    });
    let mut wanted = all[after.unwrap_or(0)..].iter().filter(is_wanted).peekable();
    let limit = page.n.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let (mut entries, mut length) = (Vec::new(), 0);
    while entries.len() < limit
        && let Some(entry) = wanted.peek()
    {
        length += serde_json::to_string(entry).map_or(0, |json| json.len());
        if length > LONGEST_PAGE && !entries.is_empty() {
            break;
        }
        entries.extend(wanted.next().cloned());
    }
    let last = entries.last().map(|entry| entry.digest.to_string());
    let next = last.filter(|_| wanted.peek().is_some()).map(|last| Page { n: page.n, last: Some(last) });
    ReferrersPage { document: ImageIndex::of(entries).to_json(), next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest, Manifest};

    fn entry(index: usize, kind: &str, note: usize) -> Descriptor {
        let digest = Digest::of(Algorithm::Sha256, &index.to_le_bytes());
        let mut entry = Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest, 1);
        entry.artifact_type = Some(kind.to_owned());
        entry.annotations.insert("note".to_owned(), "x".repeat(note));
        entry
    }

    /// All pages, one after the other.
    fn walk(all: &[Descriptor], artifact_type: Option<&str>, n: Option<u32>) -> Vec<Vec<Digest>> {
        let (mut pages, mut at) = (Vec::new(), Some(Page { n, last: None }));
        while let Some(wanted) = at {
            let found = page(all, artifact_type, &wanted);
            assert!(found.document.len() <= 4 << 20, "larger than a client reads");
            let Manifest::Index(index) = Manifest::parse(found.document.as_bytes(), None).unwrap() else {
                panic!("no index: {}", found.document)
            };
            pages.push(index.manifests.into_iter().map(|entry| entry.digest).collect());
            at = found.next;
        }
        pages
    }

    #[test]
    fn every_entry_is_on_one_page() {
        let kinds = ["a/sig", "a/sbom"];
        let all: Vec<_> = (0..7).map(|index| entry(index, kinds[index % 2], 0)).collect();
        let digests = |indexes: &[usize]| indexes.iter().map(|at| all[*at].digest).collect::<Vec<_>>();
        assert_eq!(walk(&all, None, None), [digests(&[0, 1, 2, 3, 4, 5, 6])]);
        assert_eq!(walk(&all, None, Some(3)), [digests(&[0, 1, 2]), digests(&[3, 4, 5]), digests(&[6])]);
        assert_eq!(walk(&all, Some("a/sbom"), Some(2)), [digests(&[1, 3]), digests(&[5])]);
        assert_eq!(walk(&all, Some("a/other"), None), [digests(&[])]);
        assert_eq!(walk(&[], None, None), [digests(&[])]);
    }

    #[test]
    fn a_long_list_comes_in_pages_that_clients_read() {
        let all: Vec<_> = (0..9).map(|index| entry(index, "a/b", 1 << 20)).collect();
        let pages = walk(&all, None, None);
        assert!(pages.len() > 1);
        assert_eq!(pages.concat(), all.iter().map(|entry| entry.digest).collect::<Vec<_>>());
    }
}
