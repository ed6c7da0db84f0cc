//! Figures, on request: `cargo test -p runtime --test it -- measure`, with `SHIM_EXE=…/gantry` of the real binary.

use crate::node::Node;
use std::fs;
use std::time::Instant;

const CYCLES: usize = 60;

/// Clock ticks that this process and its dead children have used.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..15].iter().map(|f| f.parse::<u64>().unwrap()).sum()
}

fn private_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    // Clean pages of the binary are shared with every other process that runs it.
    let line = text.lines().find_map(|l| l.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn show(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!(
        "{name:16} min {:6.2} ms   p50 {:6.2} ms   max {:6.2} ms",
        times[0],
        times[times.len() / 2],
        times[times.len() - 1]
    );
}

async fn cycles(node: &mut Node) {
    let (mut pods, mut creates, mut starts, mut removes) = (vec![], vec![], vec![], vec![]);
    let ticks = cpu_ticks();
    for i in 0..CYCLES {
        let uid = format!("p{i}");
        let begin = Instant::now();
        node.pod(&uid).await;
        pods.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        node.runtime.create_container(&uid, node.container("c", &["sleep", "1000"])).await.unwrap();
        creates.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        node.runtime.start_container(&uid, "c").await.unwrap();
        starts.push(begin.elapsed().as_secs_f64() * 1e3);
        if i == 0 {
            let shim = node.runtime.pod(&uid).unwrap().shim_pid;
            println!("shim: {} KiB private", private_kib(shim));
            if std::env::var_os("SMAPS").is_some() {
                println!("{}", fs::read_to_string(format!("/proc/{shim}/smaps")).unwrap());
            }
        }
        let begin = Instant::now();
        node.runtime.remove_pod(&uid).await.unwrap();
        removes.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let cpu_ms = (cpu_ticks() - ticks) as f64 * 10.0 / CYCLES as f64;
    show("create_pod", pods);
    show("create_container", creates);
    show("start_container", starts);
    show("remove_pod", removes);
    println!("CPU {cpu_ms:.1} ms a cycle (all of it, shim included, tick resolution)");
}

pub fn measure() {
    Node::run(|node| Box::pin(cycles(node)));
}
