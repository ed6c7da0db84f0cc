//! Job and CronJob.

use super::get::{child, default, flag, has, int, same, set, text};
use super::pod::{self, condition, defaults};
use super::spot::Spot;
use super::workload::{CONTAINERS, IMAGES, selector, template_texts};
use super::{Behaviour, COUNTED, FieldKind, NameRule, job_rules, job_status};
use crate::table::{Cell, Column};
use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A CronJob's name plus what its Jobs' names add must fit into a label.
const CRON_NAME_MAX: usize = 52;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: "batch",
        resource: "jobs",
        defaults: |obj| {
            if let Some(spec) = child(obj, "spec") {
                job_defaults(spec);
            }
        },
        prepare_create: start_job,
        validate: |s| job(&s.key("spec"), s.has("metadata.uid")),
        validate_update: Some(job_update),
        validate_status: job_status::validate,
        fields: &[("status.successful", FieldKind::Number("/status/succeeded"))],
        columns: &[
            Column::NAME,
            Column::new("Status", Cell::Fn(|j| status(j).into())),
            Column::new("Completions", Cell::Fn(|j| completions(j).into())),
            Column::new("Duration", Cell::At(|j, now| duration(j, now).into())),
            Column::AGE,
            CONTAINERS,
            IMAGES,
            Column::wide("Selector", Cell::Fn(|v| selector(v).into())),
        ],
        ..COUNTED
    },
    Behaviour {
        group: "batch",
        resource: "cronjobs",
        name: NameRule::SubdomainUpTo(CRON_NAME_MAX),
        defaults: cron_defaults,
        prepare_create: |obj| set(obj, "status", json!({})),
        validate: |s| cron(s, &Value::Null),
        validate_update: Some(cron),
        columns: &[
            Column::NAME,
            Column::new("Schedule", Cell::Text("/spec/schedule")),
            Column::new("Timezone", Cell::TextOrNone("/spec/timeZone")),
            Column::new(
                "Suspend",
                Cell::Fn(|c| if flag(c, "/spec/suspend") { "True" } else { "False" }.into()),
            ),
            Column::new("Active", Cell::Count("/status/active")),
            Column::new("Last Schedule", Cell::At(|c, now| last_schedule(c, now).into())),
            Column::AGE,
            Column::wide(
                "Containers",
                Cell::Fn(|c| template_texts(&c["spec"]["jobTemplate"]["spec"]["template"], "/name").into()),
            ),
            Column::wide(
                "Images",
                Cell::Fn(|c| template_texts(&c["spec"]["jobTemplate"]["spec"]["template"], "/image").into()),
            ),
            Column::wide("Selector", Cell::Fn(|c| selector(&c["spec"]["jobTemplate"]).into())),
        ],
        ..COUNTED
    },
];

fn status(j: &Value) -> &'static str {
    for (ty, shown) in [("Complete", "Complete"), ("Failed", "Failed")] {
        if condition(j, ty) == "True" {
            return shown;
        }
    }
    if has(j, "/metadata/deletionTimestamp") {
        return "Terminating";
    }
    for (ty, shown) in [
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ] {
        if condition(j, ty) == "True" {
            return shown;
        }
    }
    "Running"
}

fn completions(j: &Value) -> String {
    let done = int(j, "/status/succeeded").unwrap_or(0);
    match (int(j, "/spec/completions"), int(j, "/spec/parallelism").unwrap_or(0)) {
        (Some(n), _) => format!("{done}/{n}"),
        (None, n) if n > 1 => format!("{done}/1 of {n}"),
        (None, _) => format!("{done}/1"),
    }
}

fn duration(j: &Value, now: Timestamp) -> String {
    let at = |pointer| time::parse(text(j, pointer)).ok();
    match (at("/status/startTime"), at("/status/completionTime")) {
        (None, _) => String::new(),
        (Some(from), to) => time::human_duration(time::since(to.unwrap_or(now), from)),
    }
}

fn last_schedule(c: &Value, now: Timestamp) -> String {
    let at = text(c, "/status/lastScheduleTime");
    if at.is_empty() { "<none>".into() } else { time::age(now, Some(at)) }
}

fn job_defaults(spec: &mut Value) {
    let indexed = text(spec, "/completionMode") == "Indexed";
    if !has(spec, "/completions") && !has(spec, "/parallelism") && !indexed {
        set(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let limit = if has(spec, "/backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    default(spec, "backoffLimit", limit);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    let policy = if has(spec, "/podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    default(spec, "podReplacementPolicy", policy);
    default(spec, "manualSelector", false);
    defaults::template(spec);
}

/// Gives a Job its selector and the labels that its pods carry; both hold its uid.
fn start_job(obj: &mut Value) {
    set(obj, "status", json!({}));
    let uid = text(obj, "/metadata/uid").to_string();
    let name = text(obj, "/metadata/name").to_string();
    if flag(obj, "/spec/manualSelector") || uid.is_empty() {
        return;
    }
    let labels = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    let Some(spec) = obj.get_mut("spec") else { return };
    let own = child(spec, "template").and_then(|t| child(t, "metadata")).and_then(|m| child(m, "labels"));
    if let Some(own) = own {
        labels.iter().for_each(|(k, v)| set(own, k, v.as_str()));
    }
    if let Some(matching) = child(spec, "selector").and_then(|s| child(s, "matchLabels")) {
        set(matching, "batch.kubernetes.io/controller-uid", uid);
    }
}

/// A Job's spec; `made`: of a Job that has its uid, and so its selector.
fn job(spec: &Spot, made: bool) {
    spec.non_negative(&[
        "parallelism",
        "completions",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "activeDeadlineSeconds",
    ]);
    spec.one_of("completionMode", &["Indexed", "NonIndexed"]);
    if spec.text("completionMode") == "Indexed" && !spec.has("completions") {
        spec.required("completions", "when completion mode is Indexed");
    }
    spec.one_of_opt("podReplacementPolicy", &["Failed", "TerminatingOrFailed"]);
    if made {
        match spec.opt("selector") {
            Some(selector) => pod::scheduling::label_selector(&selector),
            None => spec.required("selector", ""),
        }
    }
    job_rules::validate(spec);
    pod::template(&spec.key("template"));
    let policy = spec.key("template.spec.restartPolicy");
    if policy.text("") == "Always" {
        policy.required("", "valid values: \"OnFailure\", \"Never\"");
    } else {
        policy.known("", &["Never", "OnFailure"]);
    }
}

fn job_update(new: &Spot, old: &Value) {
    job(&new.key("spec"), new.has("metadata.uid"));
    for key in [
        "spec.selector",
        "spec.completionMode",
        "spec.podFailurePolicy",
        "spec.backoffLimitPerIndex",
        "spec.managedBy",
        "spec.successPolicy",
    ] {
        new.immutable(key, old);
    }
    let (now, was) = (job_rules::fixed_template(new.v, old), job_rules::fixed_template(old, old));
    if !same(&now, &was) {
        new.wrong("spec.template", "field is immutable");
    }
    job_rules::completions(new, old);
}

fn cron_defaults(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    default(spec, "concurrencyPolicy", "Allow");
    default(spec, "suspend", false);
    default(spec, "successfulJobsHistoryLimit", 3);
    default(spec, "failedJobsHistoryLimit", 1);
    if let Some(template) = child(spec, "jobTemplate").and_then(|t| child(t, "spec")) {
        // The rest of a Job's defaults come when a Job is made of it.
        defaults::template(template);
    }
}

/// What an earlier form (null for none) was allowed to say of time zones stays allowed.
fn cron(obj: &Spot, old: &Value) {
    let (spec, before) = (obj.key("spec"), &old["spec"]);
    let schedule = spec.text("schedule");
    if schedule.is_empty() {
        spec.required("schedule", "");
    } else if let Err(words) = schedule_words(schedule) {
        spec.wrong("schedule", &words);
    }
    spec.one_of("concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
    spec.non_negative(&["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"]);
    if schedule.contains("TZ") && !text(before, "/schedule").contains("TZ") {
        spec.wrong("schedule", "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    }
    if let Some(zone) = spec.opt("timeZone").filter(|zone| *zone.v != before["timeZone"]) {
        job_rules::time_zone(&zone);
    }
    let template = spec.key("jobTemplate.spec");
    if template.flag("manualSelector") {
        template.not_supported("manualSelector", true, &["false"]);
    }
    let mut whole = template.v.clone();
    default(&mut whole, "completionMode", "NonIndexed");
    template.with(|_, path, errors| job(&Spot::new(&whole, path, errors), false));
}

/// Checks a cron expression: five fields of numbers, names, ranges, lists and steps, or a macro.
pub fn schedule_words(schedule: &str) -> Result<(), String> {
    const MACROS: [&str; 7] =
        ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if MACROS.contains(&schedule) {
        return Ok(());
    }
    if let Some(rest) = schedule.strip_prefix("@every ") {
        let ok = !rest.is_empty()
            && rest.ends_with(['s', 'm', 'h'])
            && rest.starts_with(|c: char| c.is_ascii_digit());
        return if ok { Ok(()) } else { Err(format!("failed to parse duration {schedule}")) };
    }
    if schedule.starts_with('@') {
        return Err(format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
    }
    const MONTHS: &str = "jan feb mar apr may jun jul aug sep oct nov dec";
    const DAYS: &str = "sun mon tue wed thu fri sat";
    let bounds = [(0, 59, ""), (0, 23, ""), (1, 31, ""), (1, 12, MONTHS), (0, 6, DAYS)];
    for (text, (low, high, names)) in fields.into_iter().zip(bounds) {
        for part in text.split(',') {
            cron_part(part, low, high, names)?;
        }
    }
    Ok(())
}

fn cron_part(part: &str, low: u32, high: u32, names: &str) -> Result<(), String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
    let number = |text: &str| -> Result<u32, String> {
        let named = names.split(' ').position(|n| !n.is_empty() && n == text.to_lowercase());
        let parsed = named.map(|i| i as u32 + low).or_else(|| text.parse().ok());
        parsed.ok_or_else(|| {
            format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
        })
    };
    if let Some(step) = step
        && number(step)? == 0
    {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (from, to) = match range.split_once('-') {
        Some((a, b)) => (number(a)?, number(b)?),
        None => (number(range)?, number(range)?),
    };
    match () {
        () if from < low => Err(format!("beginning of range ({from}) below minimum ({low}): {part}")),
        () if to > high => Err(format!("end of range ({to}) above maximum ({high}): {part}")),
        () if from > to => Err(format!("beginning of range ({from}) beyond end of range ({to}): {part}")),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar MON", "@hourly", "@every 5m", "0 0 ? * 6"] {
            assert_eq!(schedule_words(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "* * * * 7",
            "a * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "@x",
            "* * * 13 *",
        ] {
            assert!(schedule_words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn jobs() {
        let mut j = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        job_defaults(&mut j["spec"]);
        start_job(&mut j);
        let mut errors = FieldErrors::new();
        job(&Spot::new(&j["spec"], "spec", &mut errors), has(&j, "/metadata/uid"));
        assert_eq!(errors, FieldErrors::new());
        assert_eq!(j["spec"]["completions"], 1);
        assert_eq!(j["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        j["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
        job(&Spot::new(&j["spec"], "spec", &mut errors), has(&j, "/metadata/uid"));
        assert_eq!(errors.causes()[0].message, "Required value: valid values: \"OnFailure\", \"Never\"");
    }
}
