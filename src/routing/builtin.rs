//! The public registries that are there without configuration.

/// An upstream everybody uses: its name, where it answers, and its other names.
pub(super) struct Builtin {
    pub(super) name: &'static str,
    pub(super) url: &'static str,
    pub(super) aliases: &'static [&'static str],
}

/// The name of Docker Hub, whose single-component repositories live below `library/`.
pub(super) const DOCKER_HUB: &str = "docker.io";

const fn plain(name: &'static str, url: &'static str) -> Builtin {
    Builtin { name, url, aliases: &[] }
}

pub(super) const BUILTIN: [Builtin; 7] = [
    Builtin {
        name: DOCKER_HUB,
        url: "https://registry-1.docker.io",
        aliases: &["index.docker.io", "registry-1.docker.io"],
    },
    plain("quay.io", "https://quay.io"),
    plain("ghcr.io", "https://ghcr.io"),
    plain("gcr.io", "https://gcr.io"),
    plain("registry.k8s.io", "https://registry.k8s.io"),
    plain("mcr.microsoft.com", "https://mcr.microsoft.com"),
    plain("public.ecr.aws", "https://public.ecr.aws"),
];
