//! `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`): profiles with plug-ins, weights and arguments, and
//! how long pods pause. Checked in the words of upstream's flags and files where there are such.
//!
//! Deliberately not here: what belongs to a process of its own (leader election, client connection, addresses,
//! parallelism): it is read, and named in [`Configuration::ignored`].

use crate::extend::Extender;
use crate::profile::{AddedAffinity, DEFAULT_NAME, DENSITY_NAME, Profile, Profiles, Strategy, Weighted};
use crate::score::SCORES;
use crate::terms::NodeTerm;
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Plug-ins of upstream that are no row of ours: always there, or nothing here is their business.
const OTHERS: &[&str] =
    &["DefaultBinder", "DefaultPreemption", "GangScheduling", "PrioritySort", "SchedulingGates"];
/// The largest weight (as upstream).
const WEIGHT_MAX: i64 = 100;
/// Fields of the file that say nothing to a scheduler in another's process.
const IGNORED: &[&str] = &[
    "clientConnection",
    "delayCacheUntilActive",
    "enableContentionProfiling",
    "enableProfiling",
    "leaderElection",
    "parallelism",
];

/// What the file says.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The profiles.
    pub profiles: Profiles,
    /// The first and the longest pause of a pod that fits nowhere.
    pub pause: (Duration, Duration),
    /// Servers outside that have a say.
    pub extenders: Arc<Vec<Extender>>,
    /// Fields that have no effect here.
    pub ignored: Vec<&'static str>,
}

impl Default for Configuration {
    fn default() -> Self {
        let pause = (Duration::from_secs(1), Duration::from_secs(10));
        let extenders = Arc::default();
        Configuration { profiles: Profiles::default(), pause, extenders, ignored: Vec::new() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    kind: String,
    api_version: String,
    #[serde(default)]
    profiles: Vec<Written>,
    percentage_of_nodes_to_score: Option<i64>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    #[serde(default)]
    extenders: Vec<Extender>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Written {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    plugins: BTreeMap<String, Set>,
    plugin_config: Vec<Args>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Set {
    enabled: Vec<Plugin>,
    disabled: Vec<Plugin>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Plugin {
    name: String,
    weight: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Args {
    name: String,
    #[serde(default)]
    args: Value,
}

/// Reads YAML or JSON.
///
/// # Errors
/// A sentence.
pub fn read(text: &[u8]) -> Result<Configuration, String> {
    let mut value = machinery::body::yaml(text).map_err(|e| e.message)?.value;
    let mut ignored = Vec::new();
    if let Some(fields) = value.as_object_mut() {
        ignored.extend(IGNORED.iter().filter(|name| fields.remove(**name).is_some()));
    }
    let file: File = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if (file.api_version.as_str(), file.kind.as_str())
        != ("kubescheduler.config.k8s.io/v1", "KubeSchedulerConfiguration")
    {
        return Err(format!("{}/{} is no KubeSchedulerConfiguration", file.api_version, file.kind));
    }
    let seconds = |field: &str, value: Option<i64>, default: u64| match value {
        None => Ok(default),
        Some(n) => u64::try_from(n)
            .ok()
            .filter(|n| *n > 0)
            .ok_or(format!("{field}: Invalid value: {n}: must be greater than 0")),
    };
    let first = seconds("podInitialBackoffSeconds", file.pod_initial_backoff_seconds, 1)?;
    let longest = seconds("podMaxBackoffSeconds", file.pod_max_backoff_seconds, 10)?;
    if longest < first {
        return Err(format!(
            "podMaxBackoffSeconds: Invalid value: {longest}: must be greater than or equal to PodInitialBackoffSeconds"
        ));
    }
    let mut profiles: Vec<Profile> = Vec::new();
    let every = percent("percentageOfNodesToScore", file.percentage_of_nodes_to_score)?;
    for (i, written) in file.profiles.into_iter().enumerate() {
        let at = format!("profiles[{i}]");
        let profile = written.profile(every).map_err(|e| format!("{at}.{e}"))?;
        if profiles.iter().any(|p| p.name == profile.name) {
            return Err(format!("{at}.schedulerName: Duplicate value: {:?}", profile.name));
        }
        profiles.push(profile);
    }
    if profiles.is_empty() {
        profiles.push(Profile { rated_percent: every, ..Profile::spreading(DEFAULT_NAME) });
    }
    if !profiles.iter().any(|p| p.name == DENSITY_NAME) {
        profiles.push(Profile { rated_percent: every, ..Profile::density(DENSITY_NAME) });
    }
    let pause = (Duration::from_secs(first), Duration::from_secs(longest));
    let mut extenders = file.extenders;
    Extender::check(&mut extenders)?;
    for profile in &mut profiles {
        profile.ignored.extend(extenders.iter().flat_map(Extender::ignored).cloned());
    }
    let (profiles, extenders) = (Profiles::new(profiles), Arc::new(extenders));
    Ok(Configuration { profiles, pause, extenders, ignored })
}

fn percent(field: &str, value: Option<i64>) -> Result<usize, String> {
    let value = value.unwrap_or(0);
    match usize::try_from(value) {
        Ok(n) if n <= 100 => Ok(n),
        _ => Err(format!("{field}: Invalid value: {value}: not in valid range [0-100]")),
    }
}

impl Written {
    fn profile(self, every: usize) -> Result<Profile, String> {
        let name = self.scheduler_name.unwrap_or(DEFAULT_NAME.into());
        if name.is_empty() {
            return Err("schedulerName: Required value".into());
        }
        // The built-in one's name means the built-in one, with what the file changes.
        let mut profile =
            if name == DENSITY_NAME { Profile::density(&name) } else { Profile::spreading(&name) };
        profile.rated_percent = match self.percentage_of_nodes_to_score {
            None => every,
            own => percent("percentageOfNodesToScore", own)?,
        };
        // Those for all points first: a point's own word goes before it.
        for (point, set) in self.plugins.iter().filter(|(point, _)| *point == "multiPoint") {
            choose(&mut profile, point, set)?;
        }
        for (point, set) in self.plugins.iter().filter(|(point, _)| *point != "multiPoint") {
            choose(&mut profile, point, set)?;
        }
        let mut seen = BTreeSet::new();
        for (i, Args { name, args }) in self.plugin_config.into_iter().enumerate() {
            let at = |e: String| format!("pluginConfig[{i}].{e}");
            if !seen.insert(name.clone()) {
                return Err(at(format!("name: Duplicate value: {name:?}")));
            }
            configure(&mut profile, &name, args).map_err(|e| at(format!("args.{e}")))?;
        }
        Ok(profile)
    }
}

/// Switches plug-ins on and off at an extension point.
fn choose(profile: &mut Profile, point: &str, set: &Set) -> Result<(), String> {
    let (filters, scores, after) = match point {
        "multiPoint" => (true, true, true),
        "filter" => (true, false, false),
        "score" => (false, true, false),
        "postFilter" => (false, false, true),
        "preEnqueue" | "queueSort" | "preFilter" | "preScore" | "reserve" | "permit" | "preBind" | "bind"
        | "postBind" | "placementGenerate" | "placementScore" => (false, false, false),
        _ => return Err(format!("plugins: unknown field {point:?}")),
    };
    let rows: Vec<&'static str> = crate::filter::FILTERS.iter().map(|r| r.name).collect();
    let known =
        |name: &str| rows.contains(&name) || SCORES.iter().any(|s| s.name == name) || OTHERS.contains(&name);
    let of = |plugins: &[Plugin]| -> Result<Vec<(String, Option<i64>)>, String> {
        let check = |p: &Plugin| match known(&p.name) || p.name == "*" {
            true => Ok((p.name.clone(), p.weight.filter(|w| *w != 0))),
            false => Err(format!("plugins.{point}: {:?} does not exist", p.name)),
        };
        plugins.iter().map(check).collect()
    };
    for (name, _) in of(&set.disabled)? {
        let all = name == "*";
        if filters {
            profile.filters_off.extend(rows.iter().filter(|r| all || **r == name));
        }
        if scores {
            // Ours stands for upstream's default constraints of that plug-in.
            let ours = |s: &str| s == "Siblings" && name == "PodTopologySpread";
            let gone: Vec<_> =
                SCORES.iter().map(|s| s.name).filter(|s| all || *s == name || ours(s)).collect();
            gone.into_iter().for_each(|s| profile.weigh(s, None));
        }
        profile.preempts &= !(after && (all || name == "DefaultPreemption"));
    }
    for (name, weight) in of(&set.enabled)? {
        if weight.is_some_and(|w| !(1..=WEIGHT_MAX).contains(&w)) {
            return Err(format!("plugins.{point}.{name}: weight must be in the range 1-{WEIGHT_MAX}"));
        }
        if filters {
            profile.filters_off.retain(|f| *f != name);
        }
        if scores && let Some(score) = SCORES.iter().find(|s| s.name == name) {
            profile.weigh(&name, Some(weight.unwrap_or(score.weight)));
        }
        profile.preempts |= after && name == "DefaultPreemption";
    }
    Ok(())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FitArgs {
    ignored_resources: BTreeSet<String>,
    ignored_resource_groups: BTreeSet<String>,
    scoring_strategy: Option<ScoringStrategy>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ScoringStrategy {
    r#type: Option<String>,
    resources: Vec<Resource>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ratio {
    shape: Vec<Point>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Point {
    utilization: i64,
    score: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resource {
    name: String,
    weight: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BalancedArgs {
    resources: Vec<Resource>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct InterPodArgs {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeAffinityArgs {
    added_affinity: Option<NodeAffinity>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpreadArgs {
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PreemptionArgs {
    min_candidate_nodes_percentage: Option<i64>,
    min_candidate_nodes_absolute: Option<i64>,
}

fn arguments<T: DeserializeOwned + Default>(mut args: Value) -> Result<T, String> {
    if let Some(fields) = args.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    if args.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(args).map_err(|e| e.to_string())
}

fn configure(profile: &mut Profile, name: &str, args: Value) -> Result<(), String> {
    match name {
        "NodeResourcesFit" => fit(profile, arguments(args)?)?,
        "NodeResourcesBalancedAllocation" => {
            let args: BalancedArgs = arguments(args)?;
            weighted(args.resources, &mut profile.balanced)?;
        }
        "InterPodAffinity" => {
            let args: InterPodArgs = arguments(args)?;
            let weight = args.hard_pod_affinity_weight.unwrap_or(1);
            if !(0..=100).contains(&weight) {
                return Err(format!(
                    "hardPodAffinityWeight: Invalid value: {weight}: not in valid range [0-100]"
                ));
            }
            profile.hard_affinity_weight = weight;
            profile.ignore_theirs = args.ignore_preferred_terms_of_existing_pods;
        }
        "NodeAffinity" => {
            let args: NodeAffinityArgs = arguments(args)?;
            profile.added = args.added_affinity.as_ref().map(added).unwrap_or_default();
        }
        "PodTopologySpread" => spread(profile, arguments(args)?)?,
        "DefaultPreemption" => preemption(profile, arguments(args)?)?,
        // Bind timeouts and device matters: nothing to set here.
        "VolumeBinding" | "DynamicResources" => {}
        _ => return Err(format!("unknown plug-in {name:?}")),
    }
    Ok(())
}

fn weighted(given: Vec<Resource>, into: &mut Vec<Weighted>) -> Result<(), String> {
    let mut read = Vec::new();
    for Resource { name, weight } in given {
        let weight = if weight == 0 { 1 } else { weight };
        if !(1..=WEIGHT_MAX).contains(&weight) {
            return Err(format!(
                "resources[{name}].weight: Invalid value: {weight}: resource weight of {name} not in valid range [1, 100]"
            ));
        }
        read.push((name, weight));
    }
    if !read.is_empty() {
        *into = read;
    }
    Ok(())
}

fn fit(profile: &mut Profile, args: FitArgs) -> Result<(), String> {
    (profile.ignored, profile.ignored_groups) = (args.ignored_resources, args.ignored_resource_groups);
    let Some(strategy) = args.scoring_strategy else { return Ok(()) };
    let at = |e: String| format!("scoringStrategy.{e}");
    profile.strategy = match strategy.r#type.as_deref().unwrap_or("LeastAllocated") {
        "LeastAllocated" => Strategy::Least,
        "MostAllocated" => Strategy::Most,
        "RequestedToCapacityRatio" => {
            shape(strategy.requested_to_capacity_ratio.unwrap_or_default().shape).map_err(at)?
        }
        other => {
            return Err(at(format!(
                "type: Unsupported value: {other:?}: supported values: \"LeastAllocated\", \"MostAllocated\", \
                 \"RequestedToCapacityRatio\""
            )));
        }
    };
    weighted(strategy.resources, &mut profile.rated).map_err(at)
}

fn shape(points: Vec<Point>) -> Result<Strategy, String> {
    let at = "requestedToCapacityRatio.shape";
    if points.is_empty() {
        return Err(format!("{at}: Required value: at least one point must be specified"));
    }
    let mut read: Vec<(i64, i64)> = Vec::new();
    for (i, Point { utilization, score }) in points.into_iter().enumerate() {
        if read.last().is_some_and(|(before, _)| *before >= utilization) {
            return Err(format!(
                "{at}[{i}].utilization: Invalid value: {utilization}: utilization values must be sorted in increasing order"
            ));
        }
        if !(0..=100).contains(&utilization) || !(0..=10).contains(&score) {
            return Err(format!("{at}[{i}]: Invalid value: utilization must be 0-100 and score 0-10"));
        }
        read.push((utilization, score));
    }
    Ok(Strategy::Shape(read))
}

fn added(affinity: &NodeAffinity) -> AddedAffinity {
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref();
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    AddedAffinity {
        required: required.map(|s| s.node_selector_terms.iter().filter_map(NodeTerm::read).collect()),
        preferred: preferred
            .filter_map(|p| Some((p.weight.into(), NodeTerm::read(&p.preference)?)))
            .collect(),
    }
}

fn spread(profile: &mut Profile, args: SpreadArgs) -> Result<(), String> {
    match (args.defaulting_type.as_str(), args.default_constraints) {
        ("" | "System", constraints) if !constraints.is_empty() => {
            Err("defaultConstraints: when .defaultingType is System, no defaultConstraints must be specified"
                .into())
        }
        ("" | "System", _) => Ok(()),
        ("List", constraints) => {
            if let Some(i) = constraints.iter().position(|c| c.label_selector.is_some()) {
                return Err(format!(
                    "defaultConstraints[{i}].labelSelector: Forbidden: constraint must not define a selector, as they deduced for each pod"
                ));
            }
            profile.weigh("Siblings", None);
            profile.default_spread = constraints;
            Ok(())
        }
        (other, _) => Err(format!(
            "defaultingType: Unsupported value: {other:?}: supported values: \"List\", \"System\""
        )),
    }
}

fn preemption(profile: &mut Profile, args: PreemptionArgs) -> Result<(), String> {
    let (part, least) =
        (args.min_candidate_nodes_percentage.unwrap_or(10), args.min_candidate_nodes_absolute.unwrap_or(100));
    profile.candidates_percent = percent("minCandidateNodesPercentage", Some(part))?;
    profile.candidates_min = usize::try_from(least).map_err(|_| {
        format!("minCandidateNodesAbsolute: Invalid value: {least}: not in valid range [0, inf)")
    })?;
    if part == 0 && least == 0 {
        return Err("minCandidateNodesPercentage: both minCandidateNodesPercentage and minCandidateNodesAbsolute cannot be zero".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
