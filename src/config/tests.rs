use super::*;

/// The example configuration, which documents every option.
const EXAMPLE: &str = include_str!("../../config/clawhub-edge.toml");

/// Where a test's configuration keeps things.
fn environment() -> BTreeMap<String, String> {
    let pairs = [("CACHE_DIRECTORY", "/cache"), ("STATE_DIRECTORY", "/state")];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn load(text: &str) -> Result<Config, Mistakes> {
    let settings = Settings::new(Some((Path::new("edge.toml"), text)), [], Overrides::new());
    let config = Config::read(&settings.root(), None, &environment());
    settings.finish().map(|()| config)
}

#[test]
fn no_configuration_at_all_is_a_good_one() {
    let config = load("").unwrap();
    assert_eq!(config.frontend.listen[0].address.to_string(), "127.0.0.1:5050");
    assert_eq!(config.store.disks[0].directory, Path::new("/cache"));
    assert_eq!(config.state, Path::new("/state"));
}

#[test]
fn the_example_states_every_option_with_its_default() {
    let settings = Settings::new(Some((Path::new("clawhub-edge.toml"), EXAMPLE)), [], Overrides::new());
    Config::read(&settings.root(), None, &environment());
    let defaults = settings.defaults();
    settings.finish().unwrap();
    let documented = documented();
    for (key, default) in defaults {
        // The tables that the example fills in have no defaults of their own to document.
        if key.starts_with("upstreams.") {
            continue;
        }
        let key = key.replace("[0]", "");
        let found = documented.get(&key);
        assert_eq!(found, Some(&default), "{key} in config/clawhub-edge.toml");
    }
}

/// The options of the example as `key → value`, commented out or not.
fn documented() -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut options = BTreeMap::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, value)) = line.split_once(" = ") {
            let value = value.trim_matches('"').replace(['[', ']', '"'], "").replace(", ", ",");
            options.insert(format!("{section}.{key}"), value);
        }
    }
    options
}

#[test]
fn a_credential_behind_an_open_listener_refuses_to_start_and_says_the_ways_out() {
    let credential = "[upstreams.\"docker.io\"]\nusername = \"u\"\npassword = \"p\"\n";
    let open = "[[listen]]\naddress = \"0.0.0.0:5050\"\n";
    let mistakes = load(&format!("{open}{credential}")).unwrap_err().to_string();
    for way in ["loopback", "remove the credentials", "access = \"caller\"", "auth.anonymous = true"] {
        assert!(mistakes.contains(way), "{way} is missing in {mistakes}");
    }
    load(credential).unwrap();
    load(&format!("{open}{credential}access = \"caller\"\n")).unwrap();
    load(open).unwrap();
    load(&format!("{open}{credential}[auth]\nanonymous = true\n")).unwrap();
}

#[test]
fn logins_in_clear_are_warned_of() {
    let warnings = |text: &str| load(text).unwrap().about_logins().len();
    let judging = |url: &str| format!("[upstreams.\"a.example\"]\nurl = \"{url}\"\naccess = \"caller\"\n");
    let open = "[[listen]]\naddress = \"0.0.0.0:5050\"\n";
    assert_eq!(warnings(open), 0);
    assert_eq!(warnings(&judging("https://a.example")), 0);
    assert_eq!(warnings(&judging("http://127.0.0.1:5000")), 0);
    assert_eq!(warnings(&judging("http://a.example")), 1);
    assert_eq!(warnings(&format!("{open}{}", judging("http://a.example"))), 2);
    let with_keys = "[auth]\nanonymous = false\n";
    assert_eq!(warnings(&format!("{open}{with_keys}")), 1);
    assert_eq!(warnings(&format!("{with_keys}[upstreams.\"a.example\"]\naccess = \"open\"\n")), 1);
    assert!(load("[auth]\npublic = [\"a/**\"]\n").is_err(), "it would say nothing");
}

#[test]
fn cache_and_state_go_where_the_environment_says() {
    let of = |default: &DefaultDirectory, pairs: &[(&str, &str)]| {
        default.of(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    };
    assert_eq!(of(&STATE, &[("HOME", "/h")]), Path::new("/h/.local/state/clawhub-edge"));
    assert_eq!(of(&STATE, &[("HOME", "/h"), ("STATE_DIRECTORY", "/s")]), Path::new("/s"));
    assert_eq!(of(&STATE, &[]), Path::new("/var/lib/clawhub-edge"));
    let directory = |pairs: &[(&str, &str)]| of(&CACHE, pairs);
    assert_eq!(directory(&[("HOME", "/h")]), Path::new("/h/.cache/clawhub-edge"));
    assert_eq!(directory(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/clawhub-edge"));
    assert_eq!(directory(&[("HOME", "/h"), ("CACHE_DIRECTORY", "/c")]), Path::new("/c"));
    assert_eq!(directory(&[("XDG_CACHE_HOME", "relative")]), Path::new("/var/cache/clawhub-edge"));
}
