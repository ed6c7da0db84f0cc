//! `gantry compose`: a compose file as one ECS service, through the AWS API as everybody has it.
//!
//! All services of a file are the containers of one task definition; the ECS service runs so many of that task. A
//! definition is registered only when the file changed. What was said by `configure` is remembered beside the file.

mod aws;
mod file;
mod logs;
mod task;

use crate::config::Config;
use crate::cost::flag;
use anyhow::{Context, Result, bail, ensure};
use aws::{Client, ECS};
use jiff::Timestamp;
use machinery::kinds::get::{int, list, text};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: gantry compose configure|up|ps|scale N|logs|stop|delete [--file F] [--project P] \
                     [--cluster C] [--launch-type EC2|FARGATE] [--desired-count N]; of logs: [--follow] [--timestamps] \
                     [--tail N]";
/// Looked for in this order.
const FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
/// What `configure` remembers, beside the file.
const REMEMBERED: &str = ".gantry-compose";
const SETTINGS: [&str; 3] = ["cluster", "launch-type", "project"];
/// The tag that says which file a definition was made of.
const HASH_TAG: &str = "gantry-compose";
/// How long a change of the service may take.
const STABLE_MAX: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// Tasks that are described at once.
const DESCRIBE_MAX: usize = 100;

/// What all commands know.
struct Project {
    client: Client,
    path: PathBuf,
    name: String,
    cluster: String,
    launch: String,
}

/// Dispatches.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    let (flags, words): (Vec<String>, Vec<String>) = words.iter().cloned().partition(|w| w.starts_with("--"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let project = Project::find(&config, &flags)?;
    let count = || flag(&flags, "desired-count").map(str::parse::<u64>).transpose();
    match words[..] {
        ["configure"] => project.configure(),
        ["up"] => project.up(count().context("--desired-count")?),
        ["ps"] => project.ps(),
        ["scale", n] => {
            let n =
                n.parse().with_context(|| format!("{n:?}: the whole file scales: gantry compose scale 3"))?;
            project.set_count(n)?;
            project.wait()
        }
        ["logs"] => logs::show(&project, &flags),
        ["stop"] => {
            project.set_count(0)?;
            project.wait()
        }
        ["delete"] => project.delete(),
        _ => bail!("{USAGE}"),
    }
}

/// The file's own `name`.
fn own_name(path: &Path) -> Option<String> {
    let body = machinery::body::yaml(&std::fs::read(path).ok()?).ok()?;
    body.value["name"].as_str().map(String::from)
}

fn default_name(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().to_lowercase());
    let letters = folder.unwrap_or_default();
    let letters: String =
        letters.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if letters.is_empty() { "compose".into() } else { letters }
}

impl Project {
    fn find(config: &Config, flags: &[String]) -> Result<Project> {
        let path = match flag(flags, "file") {
            Some(file) => PathBuf::from(file),
            None => {
                let found = FILES.iter().map(PathBuf::from).find(|p| p.exists());
                found.with_context(|| format!("no {} here: --file F", FILES.join(", ")))?
            }
        };
        let path = std::path::absolute(&path)?;
        ensure!(path.exists(), "{}: no such file", path.display());
        let remembered = std::fs::read_to_string(path.with_file_name(REMEMBERED)).unwrap_or_default();
        let remembered = file::variables(&remembered);
        let setting =
            |name: &str| flag(flags, name).map(String::from).or_else(|| remembered.get(name).cloned());
        let name = setting("project").or_else(|| own_name(&path)).unwrap_or_else(|| default_name(&path));
        ensure!(ecs_model::taskdef::is_name(&name), "{name:?} is no name for a project (--project)");
        let launch = setting("launch-type").unwrap_or_else(|| "EC2".into()).to_uppercase();
        ensure!(matches!(&*launch, "EC2" | "FARGATE"), "--launch-type takes EC2 or FARGATE, not {launch:?}");
        let cluster = setting("cluster").unwrap_or_else(|| "default".into());
        Ok(Project { client: Client::find(config)?, path, name, cluster, launch })
    }

    /// The file, its variables filled in from the environment and `.env`.
    fn file(&self) -> Result<Value> {
        let text = std::fs::read_to_string(&self.path)?;
        let beside = std::fs::read_to_string(self.path.with_file_name(".env")).unwrap_or_default();
        let mut variables = file::variables(&beside);
        variables.extend(std::env::vars());
        file::parse(&text, &variables).with_context(|| self.path.display().to_string())
    }

    fn env_files(&self, file: &Value) -> Result<BTreeMap<String, String>> {
        let mut out = BTreeMap::new();
        for service in file["services"].as_object().into_iter().flat_map(|s| s.values()) {
            let listed = match &service["env_file"] {
                Value::String(one) => vec![one.as_str()],
                many => many.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
            };
            for name in listed {
                let path = self.path.with_file_name("").join(name);
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                out.insert(name.to_string(), text);
            }
        }
        Ok(out)
    }

    /// The task definition of the file; prints notes.
    fn definition(&self, file: &Value, account: &str) -> Result<Value> {
        let options = task::Options {
            project: self.name.clone(),
            fargate: self.launch == "FARGATE",
            region: self.client.region().to_string(),
            account: account.to_string(),
            env_files: self.env_files(file)?,
        };
        let (definition, notes) =
            task::definition(file, &options).with_context(|| self.path.display().to_string())?;
        notes.iter().for_each(|note| eprintln!("note: {note}"));
        Ok(definition)
    }

    /// Remembers where the file goes; shows what it becomes.
    fn configure(&self) -> Result<()> {
        let definition = self.definition(&self.file()?, "123456789012")?;
        let values = [&self.cluster, &self.launch, &self.name];
        let lines = SETTINGS.iter().zip(values).map(|(name, value)| format!("{name}={value}\n"));
        std::fs::write(self.path.with_file_name(REMEMBERED), lines.collect::<String>())?;
        println!("{}", serde_json::to_string_pretty(&definition)?);
        Ok(())
    }

    fn ecs(&self, operation: &str, input: &Value) -> Result<Value> {
        self.client.call(ECS, operation, input)
    }

    /// The cluster's ARN; made where it is missing.
    fn cluster_arn(&self) -> Result<String> {
        let seen = self.ecs("DescribeClusters", &json!({"clusters": [self.cluster]}))?;
        let active = list(&seen, "/clusters").iter().find(|c| text(c, "/status") == "ACTIVE");
        if let Some(cluster) = active {
            return Ok(text(cluster, "/clusterArn").to_string());
        }
        let made = self.ecs("CreateCluster", &json!({"clusterName": self.cluster}))?;
        println!("cluster {} created", self.cluster);
        Ok(text(&made, "/cluster/clusterArn").to_string())
    }

    /// The ARN of the file's task definition: the newest revision if it was made of the same, else a new one.
    fn register(&self, mut definition: Value) -> Result<String> {
        let hash = ecs_model::names::derived_id(&definition.to_string());
        let newest = json!({"taskDefinition": self.name, "include": ["TAGS"]});
        if let Ok(seen) = self.ecs("DescribeTaskDefinition", &newest) {
            let same = |t: &Value| t["key"] == HASH_TAG && t["value"] == *hash;
            if list(&seen, "/tags").iter().any(same) {
                return Ok(text(&seen, "/taskDefinition/taskDefinitionArn").to_string());
            }
        }
        definition["tags"] = json!([{"key": HASH_TAG, "value": hash}]);
        let made = self.ecs("RegisterTaskDefinition", &definition)?;
        let arn = text(&made, "/taskDefinition/taskDefinitionArn").to_string();
        println!("task definition {} registered", arn.rsplit('/').next().unwrap_or_default());
        Ok(arn)
    }

    /// The service, unless there is none (or only what is left of one).
    fn service(&self) -> Result<Option<Value>> {
        let input = json!({"cluster": self.cluster, "services": [self.name]});
        let seen = self.ecs("DescribeServices", &input)?;
        Ok(list(&seen, "/services").iter().find(|s| text(s, "/status") == "ACTIVE").cloned())
    }

    fn needed(&self) -> Result<Value> {
        self.service()?.with_context(|| {
            format!("no service {} in cluster {}: gantry compose up", self.name, self.cluster)
        })
    }

    fn up(&self, count: Option<u64>) -> Result<()> {
        let file = self.file()?;
        let cluster = self.cluster_arn()?;
        let account = cluster.split(':').nth(4).unwrap_or_default().to_string();
        let arn = self.register(self.definition(&file, &account)?)?;
        let mut input = json!({"cluster": self.cluster, "taskDefinition": arn});
        match self.service()? {
            Some(old) => {
                input["service"] = json!(self.name);
                input["desiredCount"] = json!(
                    count
                        .or(old["desiredCount"].as_u64().filter(|n| *n > 0))
                        .unwrap_or_else(|| task::replicas(&file))
                );
                self.ecs("UpdateService", &input)?;
                println!("service {} updated", self.name);
            }
            None => {
                input["serviceName"] = json!(self.name);
                input["desiredCount"] = json!(count.unwrap_or_else(|| task::replicas(&file)));
                input["launchType"] = json!(self.launch);
                if self.launch == "FARGATE" {
                    let variable =
                        std::env::var("GANTRY_SUBNETS").unwrap_or_else(|_| "subnet-default-a".into());
                    let subnets: Vec<&str> = variable.split(',').collect();
                    input["networkConfiguration"] = json!({"awsvpcConfiguration": {"subnets": subnets}});
                }
                if task_has_fixed_ports(&file) && self.launch == "EC2" {
                    // Two tasks cannot hold one port of a node: the old one goes first.
                    input["deploymentConfiguration"] =
                        json!({"maximumPercent": 100, "minimumHealthyPercent": 0});
                }
                self.ecs("CreateService", &input)?;
                println!("service {} created", self.name);
            }
        }
        self.wait()
    }

    fn set_count(&self, count: u64) -> Result<()> {
        self.needed()?;
        let input = json!({"cluster": self.cluster, "service": self.name, "desiredCount": count});
        self.ecs("UpdateService", &input).map(drop)
    }

    /// Waits until the service is as wanted, and tells what it says meanwhile.
    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + STABLE_MAX;
        let (mut told, mut stopped): (Option<BTreeSet<String>>, BTreeSet<String>) = Default::default();
        let started = Timestamp::now().as_second() as f64;
        loop {
            let service = self.needed()?;
            let lines = list(&service, "/events");
            let ids = lines.iter().map(|e| text(e, "/id").to_string());
            if let Some(told) = &told {
                let new: Vec<_> = lines.iter().rev().filter(|e| !told.contains(text(e, "/id"))).collect();
                new.iter().for_each(|e| println!("{}", text(e, "/message")));
                if !new.is_empty() {
                    self.tell_stopped(started, &mut stopped)?;
                }
            }
            told = Some(ids.collect());
            let number = |member: &str| int(&service, &format!("/{member}")).unwrap_or(0);
            let failed = list(&service, "/deployments")
                .iter()
                .find(|d| d["status"] == "PRIMARY" && d["rolloutState"] == "FAILED");
            if let Some(deployment) = failed {
                bail!("the deployment failed: {}", text(deployment, "/rolloutStateReason"));
            }
            if list(&service, "/deployments").len() <= 1
                && number("runningCount") == number("desiredCount")
                && number("pendingCount") == 0
            {
                println!("service {}: {} running", self.name, number("runningCount"));
                return Ok(());
            }
            if Instant::now() > deadline {
                let why = lines.first().map(|e| text(e, "/message")).unwrap_or_default();
                bail!("service {} is not stable after {} s: {why}", self.name, STABLE_MAX.as_secs());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Why tasks stopped since a time (seconds since 1970), each once.
    fn tell_stopped(&self, since: f64, told: &mut BTreeSet<String>) -> Result<()> {
        for task in self.tasks()? {
            let id = text(&task, "/taskArn").rsplit('/').next().unwrap_or_default();
            let why = text(&task, "/stoppedReason");
            let late = task["stoppedAt"].as_f64().is_some_and(|at| at >= since);
            if late && !why.is_empty() && !why.starts_with("Scaling activity") && told.insert(id.to_string())
            {
                println!("task {id} stopped: {why}");
            }
        }
        Ok(())
    }

    /// The service's tasks, those that stopped lately included.
    fn tasks(&self) -> Result<Vec<Value>> {
        let mut out = Vec::new();
        for status in ["RUNNING", "STOPPED"] {
            let input = json!({"cluster": self.cluster, "serviceName": self.name, "desiredStatus": status});
            let arns = self.ecs("ListTasks", &input)?;
            for arns in list(&arns, "/taskArns").chunks(DESCRIBE_MAX) {
                let seen = self.ecs("DescribeTasks", &json!({"cluster": self.cluster, "tasks": arns}))?;
                out.extend(list(&seen, "/tasks").iter().cloned());
            }
        }
        Ok(out)
    }

    fn ps(&self) -> Result<()> {
        println!("{:<50} {:<14} {:<30} {:<20} HEALTH", "NAME", "STATE", "PORTS", "TASK DEFINITION");
        for task in self.tasks()? {
            let id = text(&task, "/taskArn").rsplit('/').next().unwrap_or_default();
            let definition = text(&task, "/taskDefinitionArn").rsplit('/').next().unwrap_or_default();
            for container in list(&task, "/containers") {
                println!(
                    "{:<50} {:<14} {:<30} {definition:<20} {}",
                    format!("{id}/{}", text(container, "/name")),
                    state(container),
                    ports(container),
                    text(container, "/healthStatus"),
                );
            }
        }
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        self.needed()?;
        self.ecs("DeleteService", &json!({"cluster": self.cluster, "service": self.name, "force": true}))?;
        let deadline = Instant::now() + STABLE_MAX;
        let input = json!({"cluster": self.cluster, "services": [self.name]});
        loop {
            let seen = self.ecs("DescribeServices", &input)?;
            let left = list(&seen, "/services").iter().any(|s| text(s, "/status") != "INACTIVE");
            if !left {
                println!("service {} deleted", self.name);
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "service {} is still draining", self.name);
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Does a service of the file hold a port of its node?
fn task_has_fixed_ports(file: &Value) -> bool {
    let services = file["services"].as_object().into_iter().flat_map(|s| s.values());
    services.flat_map(|s| list(s, "/ports")).any(|p| match p {
        Value::Object(_) => !p["published"].is_null(),
        other => other.as_str().is_some_and(|t| t.contains(':')),
    })
}

fn state(container: &Value) -> String {
    match int(container, "/exitCode") {
        Some(code) => format!("{} ({code})", text(container, "/lastStatus")),
        None => text(container, "/lastStatus").to_string(),
    }
}

fn ports(container: &Value) -> String {
    let bound = list(container, "/networkBindings").iter().map(|b| {
        let (host, inside) = (int(b, "/hostPort").unwrap_or(0), int(b, "/containerPort").unwrap_or(0));
        format!("{host}->{inside}/{}", text(b, "/protocol"))
    });
    let own =
        list(container, "/networkInterfaces").iter().map(|i| text(i, "/privateIpv4Address").to_string());
    bound.chain(own).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_name_is_its_folders() {
        assert_eq!(default_name(Path::new("/home/me/My Shop/compose.yaml")), "myshop");
        assert_eq!(default_name(Path::new("/compose.yaml")), "compose");
    }

    #[test]
    fn lines_of_ps() {
        let container = json!({"lastStatus": "STOPPED", "exitCode": 3, "networkBindings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        assert_eq!((state(&container).as_str(), ports(&container).as_str()), ("STOPPED (3)", "8080->80/tcp"));
        let fixed = |ports: Value| task_has_fixed_ports(&json!({"services": {"a": {"ports": ports}}}));
        assert!(fixed(json!(["8080:80"])) && fixed(json!([{"target": 1, "published": 2}])));
        assert!(!fixed(json!(["80"])) && !fixed(json!([80])));
    }

    #[test]
    fn the_examples_are_understood() {
        let example = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
            std::fs::read_to_string(path).unwrap()
        };
        let file = file::parse(&example("compose/compose.yaml"), &BTreeMap::new()).unwrap();
        let options = task::Options {
            project: "compose".into(),
            fargate: false,
            region: "us-east-1".into(),
            account: "123456789012".into(),
            env_files: BTreeMap::new(),
        };
        let (definition, notes) = task::definition(&file, &options).unwrap();
        assert!(notes.is_empty() && list(&definition, "/containerDefinitions").len() == 3, "{definition}");
        let rule: Value = serde_json::from_str(&example("events-rule.json")).unwrap();
        aws_server::services::events::Pattern::parse(text(&rule, "/EventPattern")).unwrap();
        let nginx: Value = serde_json::from_str(&example("fargate-nginx.json")).unwrap();
        assert_eq!(text(&nginx, "/networkMode"), "awsvpc");
    }
}
