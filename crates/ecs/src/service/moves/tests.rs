//! What is started and stopped within the percentages: situations, and a property over random ones.

use super::*;
use proptest::prelude::*;

fn task(id: &str, deployment: &str, health: Health) -> Seen {
    Seen {
        id: id.into(),
        deployment: deployment.into(),
        last: "RUNNING".into(),
        wanted: true,
        health,
        due_ms: None,
        zone: "a".into(),
        provider: String::new(),
        instance: String::new(),
        leaving: false,
        protected: false,
        created_ms: 0,
        end: None,
    }
}

fn tasks(text: &str) -> Vec<Seen> {
    // h/s/u: healthy, starting, unhealthy of the primary; H/S/U: of an older deployment; p: not running yet.
    let one = |(i, c): (usize, char)| {
        let health = match c.to_ascii_lowercase() {
            'h' => Health::Healthy,
            'u' => Health::Unhealthy("Task failed x".into()),
            _ => Health::Starting,
        };
        let mut task = task(&format!("{i}{c}"), if c.is_uppercase() { "old" } else { "new" }, health);
        if c == 'p' || c == 'P' {
            task.last = "PENDING".into();
        }
        task
    };
    text.chars().enumerate().map(one).collect()
}

fn moves(text: &str, bounds: Bounds, proven: &str, tune: impl Fn(&mut Board)) -> (usize, Vec<String>) {
    let tasks = tasks(text);
    let proven = tasks.iter().filter(|t| proven.contains(&t.id[1..])).map(|t| t.id.clone()).collect();
    let all: Vec<&Seen> = tasks.iter().collect();
    let mut board = Board {
        tasks: &all,
        primary: "new",
        bounds,
        proven: &proven,
        blocked: false,
        failed: false,
        extra: false,
    };
    tune(&mut board);
    let moves = replica(&board);
    let mut stop: Vec<String> = moves.stop.into_iter().map(|(id, _)| id).collect();
    stop.sort();
    (moves.start, stop)
}

fn plain(text: &str, bounds: Bounds) -> (usize, Vec<String>) {
    moves(text, bounds, "", |_| {})
}

#[test]
fn rounding_is_awss() {
    assert_eq!(Bounds::new(3, 150, 50), Bounds { want: 3, most: 4, least: 2 });
    assert_eq!(Bounds::new(1, 199, 1), Bounds { want: 1, most: 1, least: 1 });
    assert_eq!(Bounds::new(0, 200, 100), Bounds { want: 0, most: 0, least: 0 });
}

#[test]
fn a_rolling_update_by_the_book() {
    let twice = Bounds::new(2, 200, 100);
    for (now, start, stop) in [
        ("", 2, ""),
        ("HH", 2, ""),
        ("HHss", 0, ""),
        ("HHhs", 0, "0H"),
        ("HHhh", 0, "0H 1H"),
        ("hh", 0, ""),
        ("Hhs", 0, ""),
        ("SSss", 0, ""),
        ("PPss", 0, "0P 1P"),
    ] {
        let (started, stopped) = plain(now, twice);
        let mut wanted: Vec<&str> = stop.split_whitespace().collect();
        wanted.sort_unstable();
        // Which of equals goes first is the order of stops' business.
        assert_eq!((started, stopped.len()), (start, wanted.len()), "{now} {stopped:?}");
    }
    // No room above: stop first, as far as the lower bound lets.
    let tight = Bounds::new(4, 100, 50);
    assert_eq!((plain("HHHH", tight).0, plain("HHHH", tight).1.len()), (0, 2));
    assert_eq!(plain("HHss", tight), (0, vec![]));
    assert_eq!(plain("HH", tight), (2, vec![]));
    // Capacity is short: the same, though the bound would let.
    let full = moves("HHHH", Bounds::new(4, 200, 50), "", |b| b.blocked = true);
    assert_eq!((full.0, full.1.len()), (4, 2));
}

#[test]
fn scaling_and_replacing() {
    let three = Bounds::new(3, 200, 100);
    assert_eq!(plain("hhhhs", three), (0, vec!["3h".into(), "4s".into()]));
    assert_eq!(plain("hhh", Bounds::new(0, 200, 100)).1.len(), 3);
    // One that was healthy once is replaced first, stopped then.
    assert_eq!(moves("hhu", three, "u", |_| {}), (1, vec![]));
    assert_eq!(moves("hhus", three, "u", |_| {}), (0, vec![]));
    assert_eq!(moves("hhuh", three, "u", |_| {}), (0, vec!["2u".into()]));
    let tight = Bounds::new(3, 100, 50);
    assert_eq!(moves("huu", tight, "u", |_| {}).1.len(), 1, "one at a time where there is no room");
    // One that never was goes at once.
    assert_eq!(plain("hhu", three), (1, vec!["2u".into()]));
    // After the circuit breaker nothing is started and the old tasks stay.
    assert_eq!(moves("HHHu", three, "", |b| b.failed = true), (0, vec!["3u".into()]));
    // Balance: one more, and then one less.
    assert_eq!(moves("hhh", three, "", |b| b.extra = true), (1, vec![]));
    assert_eq!(moves("hhhh", three, "", |b| b.extra = true), (0, vec![]));
}

#[test]
fn protected_tasks_stay_and_the_crowded_zone_goes_first() {
    let mut all = tasks("hhhh");
    all[0].protected = true;
    all[3].zone = "b".into();
    for (i, task) in all.iter_mut().enumerate() {
        task.created_ms = i as i64;
    }
    let refs: Vec<&Seen> = all.iter().collect();
    let ids = |n| victims(&refs, n).iter().map(|t| t.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(4), ["2h", "1h", "3h"]);
    all[3].last = "PENDING".into();
    let refs: Vec<&Seen> = all.iter().collect();
    assert_eq!(victims(&refs, 1)[0].id, "3h");
    let zones: BTreeSet<String> = ["a", "b", "c"].map(String::from).into();
    assert_eq!(imbalance(&refs, &zones).unwrap()["c"], 0);
    assert_eq!(imbalance(&refs[2..], &zones), None);
}

fn place(arn: &str, takes: bool) -> Place {
    Place { arn: arn.into(), zone: "a".into(), takes, active: takes }
}

#[test]
fn daemons_run_once_on_every_instance() {
    let places = [place("i1", true), place("i2", true), place("i3", false)];
    let proven = BTreeSet::new();
    let go = |tasks: &[Seen], bounds: Bounds| {
        let all: Vec<&Seen> = tasks.iter().collect();
        let board = Board {
            tasks: &all,
            primary: "new",
            bounds,
            proven: &proven,
            blocked: false,
            failed: false,
            extra: false,
        };
        let moves = daemon(&board, &places);
        (moves.start_on, moves.stop.into_iter().map(|(id, _)| id).collect::<Vec<_>>())
    };
    let on = |id: &str, deployment: &str, instance: &str| Seen {
        instance: instance.into(),
        ..task(id, deployment, Health::Healthy)
    };
    let by_default = Bounds::new(2, 100, 0);
    assert_eq!(go(&[], by_default).0, ["i1", "i2"]);
    let gone = go(&[on("1", "new", "i1"), on("3", "new", "i3")], by_default);
    assert_eq!(gone, (vec!["i2".to_string()], vec!["3".to_string()]));
    let old = [on("1", "old", "i1"), on("2", "old", "i2")];
    assert_eq!(go(&old, by_default).1, ["1", "2"]);
    assert_eq!(go(&old, Bounds::new(2, 100, 50)).1, ["1"]);
    assert_eq!(go(&old, Bounds::new(2, 200, 100)).0, ["i1", "i2"], "first the new one, where both may be");
}

proptest! {
    /// Whatever the state: the bounds hold, and playing the moves ends with exactly the wanted tasks.
    #[test]
    fn bounds_hold_and_it_ends(start in "[hHsSpP]{0,8}", want in 0usize..6, most in 100usize..=200, least in 0usize..=100) {
        let bounds = Bounds::new(want, most, least);
        // AWS accepts bounds that leave no way, too.
        prop_assume!(bounds.most > bounds.least || want == 0);
        let mut all = tasks(&start);
        let mut next = 100;
        for _ in 0..60 {
            let refs: Vec<&Seen> = all.iter().collect();
            let proven = BTreeSet::new();
            let board = Board { tasks: &refs, primary: "new", bounds, proven: &proven, blocked: false, failed: false, extra: false };
            let moves = replica(&board);
            let serving = |all: &[Seen]| all.iter().filter(|t| healthy(t) || (t.serves() && t.deployment == "old")).count();
            let before = serving(&all);
            if moves.start > 0 {
                prop_assert!(all.len() + moves.start <= bounds.most);
            }
            let stop: BTreeSet<&String> = moves.stop.iter().map(|(id, _)| id).collect();
            prop_assert_eq!(stop.len(), moves.stop.len(), "nobody is stopped twice");
            let mut after: Vec<Seen> = all.iter().filter(|t| !stop.contains(&t.id)).cloned().collect();
            prop_assert!(serving(&after) >= bounds.least.min(before), "{:?} {:?}", all, moves);
            for _ in 0..moves.start {
                after.push(task(&next.to_string(), "new", Health::Starting));
                next += 1;
            }
            // The oldest that is starting gets healthy.
            if let Some(task) = after.iter_mut().find(|t| t.deployment == "new" && t.health == Health::Starting) {
                task.health = Health::Healthy;
                task.last = "RUNNING".into();
            }
            all = after;
        }
        prop_assert_eq!(all.len(), want);
        prop_assert!(all.iter().all(|t| t.deployment == "new" && healthy(t)));
    }
}
