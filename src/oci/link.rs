//! The `Link` field by which a registry hands out its lists page by page (RFC 8288; distribution-spec v1.1.1
//! "Listing Tags").

use super::percent::encode;
use super::request::Target;

/// The target of the first link with `rel="next"`, or `None`. It may be relative, and it is the upstream's
/// word: resolve it against the request's URL and check the host before following it.
pub fn next_link(header_value: &str) -> Option<String> {
    let mut rest = header_value;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, after) = after.split_once('>')?;
        let (parameters, after) = split_link(after);
        if parameters.iter().any(|parameter| is_next(parameter)) {
            return Some(target.trim_matches([' ', '\t']).to_owned());
        }
        rest = after;
    }
    None
}

/// The value of our own `Link` field: the next page of a list, its `last` being the last entry of the page just
/// sent. A used `ns` is carried along, because the client follows the link as it stands and would lose its
/// upstream otherwise.
pub fn next_page_link(next: &Target, ns: Option<&str>) -> String {
    let mut target = next.path_and_query();
    if let Some(ns) = ns {
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str("ns=");
        target.push_str(&encode(ns));
    }
    format!("<{target}>; rel=\"next\"")
}

/// The parameters that follow a target, and what follows their comma.
fn split_link(text: &str) -> (Vec<&str>, &str) {
    let mut parameters = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' | ',' if !quoted => {
                parameters.push(&text[start..at]);
                start = at + 1;
                if c == ',' {
                    return (parameters, &text[start..]);
                }
            }
            _ => {}
        }
    }
    parameters.push(&text[start..]);
    (parameters, "")
}

/// `rel=next`, quoted or not, alone or among other relations.
fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let relations = value.trim().trim_matches('"');
    name.trim().eq_ignore_ascii_case("rel")
        && relations.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
mod tests {
    use super::super::{Page, Repository};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_page_is_found_however_the_link_is_written() {
        for (header, target) in [
            (r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("/v2/a/tags/list?n=2&last=b")),
            ("<u>;rel=next", Some("u")),
            (r#"<a>; rel="prev", <b>; title="x, <y>; rel=next"; rel="next""#, Some("b")),
            (r#"<a,b>; rel="last next""#, Some("a,b")),
            (r#"<https://h/v2/_catalog?last=x>; REL="Next""#, Some("https://h/v2/_catalog?last=x")),
            (r#"<a>; rel="prev""#, None),
            (r#"<a>; rel="nextish""#, None),
            ("<a", None),
            ("", None),
        ] {
            assert_eq!(next_link(header).as_deref(), target, "{header}");
        }
    }

    proptest! {
        #[test]
        fn our_own_link_is_read_back(n: Option<u32>, last in prop::option::of("\\PC{1,12}"), ns in prop::option::of("[a-z.:0-9]{1,9}")) {
            let page = Page { n, last };
            let repository: Repository = "a/b".parse().unwrap();
            let next = Target::Tags { repository, page };
            let link = next_page_link(&next, ns.as_deref());
            let target = next_link(&link).unwrap();
            let (path, query) = target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
            let request = super::super::ApiRequest::parse(path, query).unwrap();
            prop_assert_eq!(request.ns, ns);
            prop_assert_eq!(request.target, next);
        }

        #[test]
        fn any_header_is_read_without_panic(header in "[<>;,=\"\\\\ relnxt/é]{0,40}") {
            let _ = next_link(&header);
        }
    }
}
