//! Settings from arguments: what is taken, what is refused and how that is said.

use super::*;

fn parse(args: &[&str]) -> Result<(Config, Vec<String>)> {
    Config::from_args(&args.iter().map(|a| a.to_string()).collect::<Vec<_>>())
}

#[test]
fn flags_win_over_the_file_which_wins_over_defaults() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "port = 7000 # comment\nnode-name = \"n1\"\n\n").unwrap();
    let path = file.path().to_str().unwrap();
    let (config, rest) = parse(&["image", "--port=7001", "--config", path, "load"]).unwrap();
    assert_eq!((config.port, config.node_name.as_str(), config.node_port), (7001, "n1", 10250));
    assert_eq!(rest, ["image", "load"]);
}

#[test]
fn a_data_folder_knows_its_instance() {
    let folder = tempfile::tempdir().unwrap();
    let at = format!("--data-dir={}", folder.path().display());
    let name = |args: &[&str]| parse(args).unwrap().0.name;
    assert_eq!(name(&[&at]), "gantry");
    parse(&[&at, "--name=mine"]).unwrap().0.keep_name().unwrap();
    assert_eq!(
        (name(&[&at]), name(&[&at, "--name=other"]), name(&[])),
        ("mine".into(), "other".into(), "gantry".into())
    );
    assert_eq!(name(&[&at, "--name=gantry"]), "gantry");
}

#[test]
fn a_joining_node_takes_the_clusters_settings() {
    let (cluster, _) = parse(&["--pod-cidr=10.1.0.0/16", "--service-cidr=10.2.0.0/16"]).unwrap();
    let (mut node, _) = parse(&["--max-pods=9"]).unwrap();
    node.adopt(&cluster.shared()).unwrap();
    assert_eq!(
        (node.pod_cidr.as_str(), node.service_cidr.as_str(), node.max_pods),
        ("10.1.0.0/16", "10.2.0.0/16", 9)
    );
    assert!(node.adopt(&serde_json::json!({})).is_err());
}

#[test]
fn a_switch_takes_no_value() {
    let args = ["agent", "--insecure-trust-first", "--port=1"].map(String::from);
    let (config, rest) = Config::with_flags(&args, |flag| flag == "insecure-trust-first").unwrap();
    assert_eq!(
        (config.port, rest.as_slice()),
        (1, &["agent".to_string(), "--insecure-trust-first=yes".into()][..])
    );
}

#[test]
fn bad_settings_say_what_and_where() {
    for (args, words) in [
        (&["--port", "70000"][..], "not a number in range"),
        (&["--name", "Too_Long_Name"], "1 to 8 characters"),
        (&["--nope", "1"], "no such setting: nope"),
        (&["--port"], "--port needs a value"),
        (&["--node-ip", "x"], "not an IPv4 address"),
    ] {
        let error = format!("{:#}", parse(args).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn each_row_has_its_setter() {
    let named: Vec<_> = rows().map(|[name, ..]| name).collect();
    assert_eq!(named, SETTERS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}
