//! The commands beside `serve`.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::edge::{Edge, Prepared, UPSTREAM};
use crate::support::http;
use crate::support::origin::{Image, OCI_INDEX, OCI_MANIFEST, Origin};
use crate::{MIB, manifest};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The configuration of no edge, written as it stands.
fn prepared(toml: &str) -> Prepared {
    let prepared = Edge::builder().prepare();
    std::fs::write(prepared.config(), toml).expect("there is room for a configuration");
    prepared
}

async fn check(toml: &str) -> (bool, String) {
    let output = prepared(toml).run(&["check-config"]).await;
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn version_says_the_version() {
    let output = prepared("").run(&["version"]).await;
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), format!("clawhub-edge {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn every_mistake_of_a_configuration_is_reported_at_once_with_its_line() {
    let (is_good, said) = check(
        "[store]\nmemroy = \"1GiB\"\nmemory = 7.5\n\n[tags]\nttl = \"soon\"\n\n[nonsense]\nkey = 1\n\n\
         [upstreams.\"x.test\"]\nurl = \"ftp://x.test\"\nusername = \"me\"\n",
    )
    .await;
    assert!(!is_good);
    for expected in [
        "edge.toml:2: store.memroy",
        "did you mean `memory`",
        "edge.toml:3: store.memory",
        "edge.toml:6: tags.ttl",
        ": nonsense",
        "edge.toml:12: upstreams.x.test.url",
        "edge.toml:13: upstreams.x.test.username",
    ] {
        let unquoted = said.replace('"', "");
        assert!(unquoted.contains(expected), "{expected} is missing in:\n{said}");
    }
}

#[tokio::test]
async fn a_serve_with_mistakes_does_not_start() {
    let output = prepared("[store]\nmemroy = \"1GiB\"\n").run(&["serve"]).await;
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("store.memroy"));
}

#[tokio::test]
async fn the_documented_configuration_is_good() {
    let documented = include_str!("../../config/clawhub-edge.toml");
    let (is_good, said) = check(documented).await;
    assert!(is_good, "{said}");
    // With every default written out it still is, but for what names files that are not here.
    let files = ["_file", "client_", "directory", "docker_config", "username", "/etc/clawhub-edge/"];
    let written_out: Vec<_> = documented
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key)
                if key.starts_with(|first: char| first.is_ascii_lowercase())
                    && key.contains(" = ")
                    && !files.iter().any(|name| key.contains(name)) =>
            {
                key
            }
            _ => line,
        })
        .take_while(|line| !line.starts_with("[routing]") && !line.contains("The first rule"))
        .collect();
    let (is_good, said) = check(&written_out.join("\n")).await;
    assert!(is_good, "{said}");
}

#[tokio::test]
async fn a_credential_behind_an_open_listener_is_refused_unless_it_is_meant() {
    let exposed = "[[listen]]\naddress = \"0.0.0.0:0\"\n";
    let credential = "[upstreams.\"x.test\"]\nusername = \"me\"\npassword = \"s3cr3t-w0rd\"\n";
    let (is_good, said) = check(&format!("{exposed}{credential}")).await;
    assert!(!is_good && said.contains("auth.anonymous"), "{said}");
    assert!(!said.contains("s3cr3t-w0rd"));
    for good in [
        exposed.to_owned(),
        format!("[[listen]]\naddress = \"127.0.0.1:0\"\n{credential}"),
        format!("{exposed}[auth]\nanonymous = true\n{credential}"),
    ] {
        let (is_good, said) = check(&good).await;
        assert!(is_good, "{said}");
    }
    // Flags and variables are looked at like the file.
    let output = prepared(credential).run(&["--listen", "0.0.0.0:0", "check-config"]).await;
    assert!(!output.status.success());
}

async fn pull(prepared: &Prepared, arguments: &[&str]) -> Output {
    let arguments = [&["pull"], arguments].concat();
    prepared.run(&arguments).await
}

fn multi_platform(origin: &Origin) -> (String, Image, Image) {
    let large = origin.add_synthetic_blob("library/app", 3 * MIB, 1);
    let amd64 = origin.add_image_of("library/app", "amd64", &[large]);
    let arm64 = origin.add_image("library/app", "arm64", vec!["arm64 layer".into()]);
    let index = origin.add_index("library/app", "1", &[(&amd64, "linux/amd64"), (&arm64, "linux/arm64/v8")]);
    (index, amd64, arm64)
}

#[tokio::test]
async fn pull_fills_a_cache_that_nobody_serves_yet() {
    let origin = Origin::start().await;
    let (index, _, arm64) = multi_platform(&origin);
    let prepared = Edge::builder().upstream(UPSTREAM, &origin.url(), "").prepare();
    let arguments = ["origin.test/library/app:1", "--platform", "linux/arm64", "--json"];
    let output = pull(&prepared, &arguments).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!(summary["digest"], index);
    assert_eq!(summary["manifests"], 2);
    assert_eq!(summary["blobs"], 2);
    assert!(summary["bytes"].as_u64().is_some_and(|bytes| bytes > 11));
    assert_eq!(origin.count("GET", &arm64.layer_digests[0]), 1);
    assert_eq!(origin.count("GET", "/blobs/"), 2, "only one platform");
    // Now it is cached: the same again works without the origin, in words.
    origin.vanish().await;
    let output = pull(&prepared, &arguments[..3]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(&index));
}

#[tokio::test]
async fn pull_goes_through_the_edge_that_runs() {
    let origin = Origin::start().await;
    let (_, amd64, arm64) = multi_platform(&origin);
    let edge = Edge::start(&origin).await;
    let listen = edge.addr().to_string();
    let arguments = ["--listen", &listen, "pull", "origin.test/library/app:1", "--all-platforms", "--json"];
    let output = edge.prepared().run(&arguments).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!(summary["manifests"], 3);
    assert_eq!(summary["blobs"], 4);
    origin.vanish().await;
    crate::pull(&edge, "library/app", "1", &index_of(&edge, &amd64).await).await;
    for image in [&amd64, &arm64] {
        let got = http::get(edge.addr(), &manifest("library/app", &image.manifest_digest), &[]).await;
        assert_eq!(got.status, 200);
    }
}

/// The index behind the tag, as an image without blobs of its own but those of `child`.
async fn index_of(edge: &Edge, child: &Image) -> Image {
    let got = http::get(edge.addr(), &manifest("library/app", "1"), &[]).await;
    Image {
        manifest_digest: crate::support::origin::sha256(&got.body),
        manifest: got.body.into(),
        ..child.clone()
    }
}

#[tokio::test]
async fn pull_visits_every_manifest_of_nested_indexes_once_and_refuses_endless_ones() {
    let origin = Origin::start().await;
    let image = origin.add_image("library/app", "leaf", vec!["layer".into()]);
    let nest = |child: &str, size: usize| {
        // Each level names the one below twice: visited naively, twenty levels are a million manifests.
        let entry = json!({ "mediaType": OCI_INDEX, "digest": child, "size": size });
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry, entry] });
        let index = index.to_string();
        (origin.add_manifest("library/app", None, OCI_INDEX, index.clone()), index.len())
    };
    let leaf =
        json!({ "mediaType": OCI_MANIFEST, "digest": image.manifest_digest, "size": image.manifest.len() });
    let leaf = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [leaf] }).to_string();
    let mut top = (origin.add_manifest("library/app", None, OCI_INDEX, leaf.clone()), leaf.len());
    for depth in 2..=20 {
        top = nest(&top.0, top.1);
        origin.move_tag("library/app", &format!("deep{depth}"), &top.0);
    }
    let prepared = Edge::builder().upstream("origin.test", &origin.url(), "").prepare();
    let output = pull(&prepared, &["origin.test/library/app:deep12", "--json", "--all-platforms"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["manifests"], 13);
    let output = pull(&prepared, &["origin.test/library/app:deep20", "--all-platforms"]).await;
    assert!(!output.status.success() && text(&output.stderr).contains("nests indexes deeper"));
}

#[tokio::test]
async fn pull_says_why_it_could_not() {
    let origin = Origin::start().await;
    multi_platform(&origin);
    let prepared = Edge::builder().upstream(UPSTREAM, &origin.url(), "").prepare();
    for (arguments, reason) in [
        (&["origin.test/library/app:none"][..], "MANIFEST_UNKNOWN"),
        (&["elsewhere.test/app:1"], "NAME_UNKNOWN"),
        (&["origin.test/library/app:1", "--platform", "plan9/mips"], "plan9/mips"),
    ] {
        let output = pull(&prepared, arguments).await;
        assert!(!output.status.success());
        let said = text(&output.stderr);
        assert!(said.contains(reason), "{said}");
        assert!(text(&output.stdout).is_empty());
    }
}
