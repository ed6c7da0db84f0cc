//! CPUs of their own (`--cpu-manager-policy static`): given, kept from others, kept over a kill of the agent, given back.

use crate::{has, pod};
use anyhow::{Result, ensure};
use testkit::cluster::Cluster;

#[test]
fn cpus_of_their_own() {
    let flags = ["--cpu-manager-policy", "static"];
    let mut cluster = Cluster::start(env!("CARGO_BIN_EXE_gantry"), &flags).unwrap();
    cluster.load_busybox().unwrap();
    scenario(&mut cluster).unwrap();
}

/// Tells all the time where it may run.
fn teller(name: &str, cpus: Option<usize>) -> String {
    let script = "while :; do grep Cpus_allowed_list /proc/self/status; sleep 0.2; done";
    let resources =
        cpus.map_or(String::new(), |n| format!("resources: {{limits: {{cpu: {n}, memory: 32Mi}}}}"));
    pod(name, script, &resources, "")
}

fn runs_on(cluster: &Cluster, name: &str, wanted: impl Fn(&[usize]) -> bool) -> Result<Vec<usize>> {
    cluster.eventually(&format!("{name} is where it should be"), || {
        let told = cluster.kubectl(&["logs", name, "--tail=1"])?;
        let list = told.split_whitespace().last().unwrap_or_default();
        let parts = list.split(',').filter_map(|p| {
            let (first, last) = p.split_once('-').unwrap_or((p, p));
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        let cpus: Vec<usize> = parts.flatten().collect();
        ensure!(wanted(&cpus), "{told}");
        Ok(cpus)
    })
}

fn scenario(cluster: &mut Cluster) -> Result<()> {
    let all = std::thread::available_parallelism()?.get();
    if all < 2 {
        return Ok(());
    }
    cluster.apply(&teller("shared", None))?;
    runs_on(cluster, "shared", |cpus| cpus.len() == all)?;
    cluster.apply(&teller("own", Some(1)))?;
    let own = runs_on(cluster, "own", |cpus| cpus.len() == 1)?;
    ensure!(own != [0], "CPU 0 is reserved");
    runs_on(cluster, "shared", |cpus| cpus.len() == all - 1 && !cpus.contains(&own[0]))?;
    cluster.apply(&teller("more", Some(all - 1)))?;
    cluster.wait_field(&["pod", "more"], "/status/reason", "UnexpectedAdmissionError")?;
    let said = cluster.field(&["pod", "more"], "/status/message")?;
    has(
        &said,
        &[&format!(
            "not enough cpus available to satisfy request: requested={}, available={}",
            all - 1,
            all - 2
        )],
    )?;

    cluster.kill9()?;
    cluster.up()?;
    cluster.apply(&teller("late", None))?;
    runs_on(cluster, "late", |cpus| cpus.len() == all - 1 && !cpus.contains(&own[0]))?;
    cluster.kubectl(&["delete", "pod", "own"])?;
    for name in ["shared", "late"] {
        runs_on(cluster, name, |cpus| cpus.len() == all)?;
    }
    Ok(())
}
