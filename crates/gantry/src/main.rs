//! The `gantry` binary: command line, component list, start and stop in order.
//!
//! Invariant: the shim's entry is taken before any thread or runtime exists.

mod admin;
mod compose;
mod config;
mod cost;
mod down;
mod env;
mod explain;
mod image;
mod join;
mod kubeconfig;
mod ports;
mod preflight;
mod status;
mod up;
mod user;

use anyhow::{Result, bail};
use config::Config;
use std::process::ExitCode;

/// One command: words after `gantry`, one line of help, what it does with the words that follow.
struct Command {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(Config, &[String]) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "up",
        arguments: "",
        help: "control plane and node in one process, in the foreground",
        run: up::run,
    },
    Command {
        name: "server",
        arguments: "",
        help: "a control plane alone; several over one etcd (--store) stand in for each other",
        run: up::server::run,
    },
    Command {
        name: "agent",
        arguments: "--server URL --token T --ca-hash H",
        help: "a node alone, of the cluster at URL (--insecure-trust-first in place of the hash)",
        run: join::run,
    },
    Command {
        name: "token",
        arguments: "create [--ttl T]",
        help: "print the command by which another node joins, with a fresh token",
        run: join::token::run,
    },
    Command {
        name: "env",
        arguments: "",
        help: "print what to eval in a shell so that kubectl works",
        run: env::run,
    },
    Command { name: "status", arguments: "", help: "what runs here", run: status::run },
    Command {
        name: "down",
        arguments: "",
        help: "stop everything, pods included; data stays; with --drain pods end as by shutdown first",
        run: down::run,
    },
    Command {
        name: "shutdown",
        arguments: "",
        help: "end pods in order of priority, for good, then the process; for when the machine goes down",
        run: down::shutdown,
    },
    Command {
        name: "doctor",
        arguments: "",
        help: "what would block a start or eat traffic",
        run: preflight::run,
    },
    Command {
        name: "explain",
        arguments: "pod NAME [--namespace N]",
        help: "what every filter and score of the scheduler says of a pod on every node",
        run: explain::run,
    },
    Command {
        name: "image",
        arguments: "load FILE… | ls | gc",
        help: "load archives (docker, oci), list images, remove unused ones",
        run: image::run,
    },
    Command {
        name: "cost",
        arguments: "[--by WHAT …]",
        help: "what tasks and pods came to: --by cluster|service|namespace|class|tag:KEY, --from T --to T, --prices FILE, --usage FOLDER,… --format json",
        run: cost::run,
    },
    Command {
        name: "compose",
        arguments: "configure|up|ps|scale|logs|stop|delete",
        help: "a compose file as an ECS service: --file F --project P --cluster C --desired-count N --launch-type T; logs --follow --timestamps --tail N",
        run: compose::run,
    },
    Command {
        name: "kubeconfig",
        arguments: "--user U [--group G]",
        help: "print a kubeconfig for a user, with a certificate of this cluster",
        run: user::run,
    },
    Command { name: "help", arguments: "", help: "this text", run: |_, _| help() },
    Command { name: "version", arguments: "", help: "print the version", run: |_, _| version() },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, rest @ ..] = &args[..]
        && word == "shim"
    {
        runtime::shim_main(rest)
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantry: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    if args.iter().any(|a| a == "--help" || a == "-h") {
        return help();
    }
    let (config, words) = Config::with_flags(args, |flag| COMMANDS.iter().any(|c| c.takes(flag)))?;
    let (flags, words): (Vec<String>, Vec<String>) = words.into_iter().partition(|w| w.starts_with("--"));
    let Some((word, rest)) = words.split_first() else { return help() };
    let Some(command) = COMMANDS.iter().find(|c| c.name == word) else {
        bail!("no such command: {word} (gantry help lists them)")
    };
    let name = |flag: &str| flag.trim_start_matches("--").split('=').next().unwrap_or_default().to_string();
    if let Some(stray) = flags.iter().map(|f| name(f)).find(|f| !command.takes(f)) {
        bail!("gantry {word} takes no --{stray}");
    }
    (command.run)(config, &[rest, &flags].concat())
}

impl Command {
    /// Is that flag one of its own?
    fn takes(&self, flag: &str) -> bool {
        [self.arguments, self.help].iter().any(|text| text.contains(&format!("--{flag} ")))
    }
}

fn help() -> Result<()> {
    println!(
        "gantry: a container platform in one binary\n\nusage: gantry COMMAND [--setting VALUE …]\n\ncommands:"
    );
    for command in COMMANDS {
        println!("  {:<30} {}", format!("{} {}", command.name, command.arguments), command.help);
    }
    print!("\nsettings:\n{}", config::help());
    Ok(())
}

fn version() -> Result<()> {
    println!("gantry {}", env!("CARGO_PKG_VERSION"));
    Ok(())
}
