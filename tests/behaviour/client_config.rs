//! `client-config`: what it prints can be redirected, and what it writes can be used.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::edge::{Edge, Prepared};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn prepared(toml: &str) -> Prepared {
    let prepared = Edge::builder().prepare();
    fs::write(prepared.config(), toml).expect("there is room for a configuration");
    prepared
}

async fn client_config(prepared: &Prepared, arguments: &[&str]) -> Output {
    prepared.run(&[&["client-config"], arguments].concat()).await
}

/// Standard output of a run that succeeds.
async fn printed(toml: &str, arguments: &[&str]) -> String {
    let output = client_config(&prepared(toml), arguments).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Standard error of a run that fails.
async fn refused(toml: &str, arguments: &[&str]) -> String {
    let output = client_config(&prepared(toml), arguments).await;
    assert!(!output.status.success() && output.stdout.is_empty(), "{}", text(&output.stdout));
    text(&output.stderr)
}

/// The lines that are no comments.
fn settings(printed: &str) -> Vec<&str> {
    printed.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[tokio::test]
async fn every_upstream_is_there_for_every_client_and_comments_keep_the_syntax() {
    let own = "[[listen]]\naddress = \"10.0.0.5:5050\"\n[upstreams.\"registry.test\"]\n[upstreams.corp]\n";
    for client in ["containerd", "podman", "cri-o", "buildkit"] {
        let printed = printed(own, &[client]).await;
        for upstream in ["docker.io", "quay.io", "registry.k8s.io", "registry.test"] {
            assert!(printed.contains(upstream), "{upstream} is missing for {client}:\n{printed}");
        }
        // Clients take a name without a dot for a repository of Docker Hub.
        assert!(!printed.contains("corp"), "{printed}");
        assert!(printed.contains("10.0.0.5:5050"), "{printed}");
        // Several hosts.toml in a row are no document, one file is.
        if client != "containerd" {
            printed.parse::<toml::Table>().unwrap_or_else(|error| panic!("{client}: {error}\n{printed}"));
        }
    }
}

#[tokio::test]
async fn docker_gets_json_alone_and_the_words_go_elsewhere() {
    let output = client_config(&prepared(""), &["docker", "--edge", "http://edge.test:5050"]).await;
    let daemon: Value = serde_json::from_slice(&output.stdout).expect("a JSON document");
    assert_eq!(daemon["registry-mirrors"][0], "http://edge.test:5050");
    assert_eq!(daemon["insecure-registries"][0], "edge.test:5050");
    let said = text(&output.stderr);
    assert!(said.contains("edge.test:5050/gcr.io/"), "{said}");
    // Its mirror requests name no upstream: an edge that takes them for another's must not get them.
    let other = "[routing]\ndefault_upstream = \"quay.io\"\n";
    let daemon: Value = serde_json::from_str(&printed(other, &["docker"]).await).expect("a JSON document");
    assert!(daemon.get("registry-mirrors").is_none(), "{daemon}");
}

#[tokio::test]
async fn a_listener_for_everybody_is_reached_by_this_hosts_name() {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (listeners, expected) in [
        ("[[listen]]\naddress = \"0.0.0.0:5050\"\n", format!("http://{host}:5050")),
        ("[[listen]]\naddress = \"[::]:80\"\n", format!("http://{host}\"")),
        (
            "[[listen]]\naddress = \"127.0.0.1:1\"\n[[listen]]\naddress = \"10.0.0.5:2\"\n",
            "http://10.0.0.5:2".to_owned(),
        ),
        ("", "http://127.0.0.1:5050".to_owned()),
    ] {
        let printed = printed(listeners, &["containerd", "--upstream", "docker.io"]).await;
        assert!(printed.contains(&expected), "{expected} is missing in\n{printed}");
    }
}

#[tokio::test]
async fn without_fallback_the_edge_is_the_registry() {
    let arguments = ["--upstream", "quay.io", "--edge", "http://edge.test", "--no-fallback"];
    let containerd = printed("", &[&["containerd"][..], &arguments].concat()).await;
    assert_eq!(settings(&containerd)[0], "server = \"http://edge.test\"");
    let podman = printed("", &[&["podman"][..], &arguments].concat()).await;
    assert_eq!(
        settings(&podman),
        ["[[registry]]", "prefix = \"quay.io\"", "location = \"edge.test/quay.io\"", "insecure = true"]
    );
    for client in ["docker", "buildkit"] {
        assert!(refused("", &[&[client][..], &arguments].concat()).await.contains("always asks"));
    }
}

#[tokio::test]
async fn podman_and_cri_o_choose_what_comes_from_the_mirror() {
    for which in ["digest-only", "tag-only"] {
        let arguments = ["cri-o", "--pull-from-mirror", which];
        assert!(printed("", &arguments).await.contains(&format!("pull-from-mirror = \"{which}\"")));
    }
    assert!(refused("", &["docker", "--pull-from-mirror", "tag-only"]).await.contains("only podman"));
}

#[tokio::test]
async fn a_private_authority_is_trusted_and_nothing_is_insecure() {
    let prepared = prepared("");
    let ca = prepared.path("ca.pem");
    let pem = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap().cert.pem();
    fs::write(&ca, &pem).unwrap();
    let ca = ca.to_str().unwrap();
    for (client, place) in [
        ("containerd", "/etc/containerd/certs.d/edge.test:5050/ca.crt"),
        ("docker", "/etc/docker/certs.d/edge.test:5050/ca.crt"),
        ("podman", "/etc/containers/certs.d/edge.test:5050/ca.crt"),
        ("cri-o", "/etc/containers/certs.d/edge.test:5050/ca.crt"),
        ("buildkit", "/etc/buildkit/clawhub-edge-ca.crt"),
    ] {
        let arguments = [client, "--edge", "https://edge.test:5050", "--ca", ca, "--json"];
        let output = client_config(&prepared, &arguments).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let files: Value = serde_json::from_slice(&output.stdout).expect("a JSON document");
        let files = files.as_array().expect("a list");
        let placed = files.iter().find(|file| file["path"] == place).expect(place);
        assert!(placed["content"].as_str().is_some_and(|content| content.ends_with(&pem)), "{placed}");
        for file in files {
            assert!(file["check"].as_str().is_some_and(|check| !check.is_empty()), "{file}");
            assert!(!file["content"].to_string().contains("insecure"), "{file}");
            assert!(!file["content"].to_string().contains("skip_verify"), "{file}");
        }
    }
    let plain = client_config(&prepared, &["podman", "--ca", ca]).await;
    assert!(!plain.status.success());
}

#[tokio::test]
async fn files_that_differ_are_replaced_only_by_force() {
    let prepared = prepared("");
    let root = prepared.path("root");
    let arguments = ["docker", "--edge", "http://edge.test", "--output", root.to_str().unwrap()];
    let daemon = root.join("etc/docker/daemon.json");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert!(client_config(&prepared, &arguments).await.status.success());
    let written = read(&daemon);
    assert!(read(&root.join("etc/docker/certs.d/quay.io/hosts.toml")).contains("http://edge.test"));
    assert!(client_config(&prepared, &arguments).await.status.success(), "the same again is no conflict");
    fs::write(&daemon, "{\"debug\": true}").unwrap();
    let output = client_config(&prepared, &arguments).await;
    assert!(!output.status.success() && text(&output.stderr).contains("daemon.json"));
    assert_eq!(read(&daemon), "{\"debug\": true}");
    let forced = [&arguments[..], &["--force"]].concat();
    assert!(client_config(&prepared, &forced).await.status.success());
    assert_eq!(read(&daemon), written);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_named_unless_the_edge_is_elsewhere() {
    let said = refused("", &["podman", "--upstream", "qay.io"]).await;
    assert!(said.contains("qay.io") && said.contains("quay.io"), "{said}");
    let elsewhere = ["podman", "--upstream", "registry.test", "--edge", "https://edge.test"];
    assert!(printed("", &elsewhere).await.contains("edge.test/registry.test"));
}
