//! Any pod under any weather: rules that hold at every moment.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Weather {
    policy: usize,
    init: Vec<(i64, i32)>,
    main: Vec<Vec<(i64, i32)>>,
    stubborn: bool,
    hook: bool,
    sandbox_dies_at: Option<i64>,
    delete_at: i64,
    grace: i64,
}

fn weather() -> impl Strategy<Value = Weather> {
    let run = || (0_i64..40, prop_oneof![Just(0), Just(1)]);
    (
        0_usize..3,
        proptest::collection::vec(run(), 0..3),
        proptest::collection::vec(proptest::collection::vec(run(), 0..4), 1..3),
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(0_i64..100),
        0_i64..200,
        0_i64..20,
    )
        .prop_map(|(policy, init, main, stubborn, hook, sandbox_dies_at, delete_at, grace)| Weather {
            policy,
            init,
            main,
            stubborn,
            hook,
            sandbox_dies_at,
            delete_at,
            grace,
        })
}

fn world(weather: &Weather) -> World {
    let hook = if weather.hook { json!({"preStop": {"sleep": {"seconds": 1}}}) } else { json!({}) };
    let container =
        |prefix: &str, n: usize| json!({"name": format!("{prefix}{n}"), "image": "i", "lifecycle": hook});
    let spec = json!({
        "restartPolicy": (["Always", "OnFailure", "Never"][weather.policy]),
        "initContainers": (0..weather.init.len()).map(|n| json!({"name": format!("i{n}"), "image": "i"})).collect::<Vec<_>>(),
        "containers": (0..weather.main.len()).map(|n| container("m", n)).collect::<Vec<_>>(),
    });
    let mut world = World::new(pod(spec));
    for (n, run) in weather.init.iter().enumerate() {
        world.runs.insert(format!("i{n}"), [*run, (1, 0), (1, 0), (1, 0)].into());
    }
    for (n, runs) in weather.main.iter().enumerate() {
        world.runs.insert(format!("m{n}"), runs.iter().copied().collect());
    }
    if weather.stubborn {
        world.stubborn.push("m0".into());
    }
    world
}

/// No instance starts twice, numbers only grow, and nothing starts after the end has begun.
fn check(log: &[String]) -> Result<(), TestCaseError> {
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut over = false;
    for line in log {
        let text = line.trim_start().split_once(' ').map_or("", |(_, text)| text);
        over |= text == "teardown";
        if let Some((name, attempt)) = text.strip_prefix("start ").and_then(|s| s.split_once('#')) {
            let attempt: i64 = attempt.parse().unwrap();
            prop_assert!(!over, "{name} starts after the tear-down");
            prop_assert!(attempt > last.get(name).copied().unwrap_or(-1), "{name}#{attempt} again");
            last.insert(name.into(), attempt);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_pod_comes_to_its_end(weather in weather()) {
        let mut world = world(&weather);
        let mut log = Vec::new();
        if let Some(at) = weather.sandbox_dies_at.filter(|at| *at < weather.delete_at) {
            log.extend(world.until(at));
            if world.state.sandbox.setup.ready && world.state.ending.is_none() {
                // Nothing of it will be heard of any more.
                world.queue.clear();
                world.book(Outcome::SandboxDied);
            }
        }
        log.extend(world.until(weather.delete_at));
        let before = world.status();
        world.delete(weather.grace);
        // A hook, the two seconds after it, and the grace period itself.
        log.extend(world.until(weather.delete_at + weather.grace + 4));
        check(&log)?;
        prop_assert_eq!(log.iter().filter(|l| l.ends_with(" finalize")).count(), 1, "{:#?}", log);
        let after = world.status();
        prop_assert!(matches!(after["phase"].as_str(), Some("Succeeded" | "Failed")), "{after}");
        if matches!(before["phase"].as_str(), Some("Succeeded" | "Failed")) {
            prop_assert_eq!(&before["phase"], &after["phase"]);
        }
    }
}
