//! What a token is asked for (distribution `docs/spec/auth/scope.md`).

use super::Repository;

/// One scope that can be granted here: everything else, writes above all, has no name in this type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullScope {
    /// `repository:<name>:pull`, by the client's own name.
    Repository(Repository),
    /// `registry:catalog:*`: the list of an upstream's repositories.
    Catalog,
}

impl PullScope {
    /// Reads a `scope` parameter, which may hold several, separated by spaces. Of each only the pull is taken; what asks
    /// for none, or is not understood, is left out, as the specification has it.
    pub fn parse_all(parameter: &str) -> impl Iterator<Item = Self> {
        parameter.split(' ').filter_map(Self::parse)
    }

    fn parse(scope: &str) -> Option<Self> {
        let (kind, rest) = scope.split_once(':')?;
        // A name may begin with a host and its port.
        let (name, actions) = rest.rsplit_once(':')?;
        let includes = |wanted: &str| actions.split(',').any(|action| action == wanted);
        // `repository(plugin)` is one too.
        let kind = kind.split_once('(').map_or(kind, |(kind, _class)| kind);
        match kind {
            "repository" if includes("pull") || includes("*") => Some(Self::Repository(name.parse().ok()?)),
            "registry" if name == "catalog" && includes("*") => Some(Self::Catalog),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parameter: &str) -> Vec<String> {
        let text = |scope| match scope {
            PullScope::Repository(repository) => repository.to_string(),
            PullScope::Catalog => "the catalogue".to_owned(),
        };
        PullScope::parse_all(parameter).map(text).collect()
    }

    #[test]
    fn of_every_scope_only_the_pull_is_read() {
        assert_eq!(read("repository:library/nginx:pull"), ["library/nginx"]);
        assert_eq!(read("repository:a/b:pull,push repository:c:*"), ["a/b", "c"]);
        assert_eq!(read("repository(plugin):a/b:pull"), ["a/b"]);
        assert_eq!(read("registry:catalog:*"), ["the catalogue"]);
        for nothing in [
            "",
            " ",
            "repository:a/b:push",
            "repository:a/b:delete,push",
            "repository:a/b",
            "repository:A/b:pull",
            "repository:../b:pull",
            "registry:other:*",
            "registry:catalog:pull",
            "aws",
            "a:b:c",
        ] {
            assert_eq!(read(nothing), Vec::<String>::new(), "{nothing}");
        }
    }
}
