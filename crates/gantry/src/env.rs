//! `gantry env`: shell lines that make stock clients find this instance.

use crate::config::Config;
use crate::up::aws;
use anyhow::{Result, ensure};
use std::net::Ipv4Addr;

/// Prints `export …` lines.
pub fn run(config: Config, _: &[String]) -> Result<()> {
    print!("{}", lines(&config)?);
    Ok(())
}

/// The lines, once an instance has been up in this data folder.
pub fn lines(config: &Config) -> Result<String> {
    let kubeconfig = config.kubeconfig();
    ensure!(kubeconfig.exists(), "{} does not exist: run `gantry up` first", kubeconfig.display());
    let absolute = std::path::absolute(kubeconfig)?;
    Ok(format!("export KUBECONFIG='{}'\n{}", absolute.display(), aws_lines(config)))
}

/// Endpoint, keys, region; the names of the default network; and what old AWS CLIs need, which do not know
/// `AWS_ENDPOINT_URL` and would talk to the real AWS.
fn aws_lines(config: &Config) -> String {
    let Ok(text) = std::fs::read_to_string(aws::credentials_file(config)) else { return String::new() };
    let value = |name: &str| {
        text.lines()
            .find_map(|l| l.split_once('=').filter(|(n, _)| n.trim() == name))
            .map_or("", |(_, v)| v.trim())
    };
    let host = config.bind.filter(|ip| !ip.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST);
    let (endpoint, region) = (format!("http://{host}:{}", config.aws_port), &config.aws_region);
    let zones = aws::zones(region);
    let subnets: Vec<String> = zones
        .iter()
        .filter_map(|z| z.chars().last())
        .map(|letter| format!("subnet-default-{letter}"))
        .collect();
    format!(
        "export AWS_ENDPOINT_URL='{endpoint}'\n\
         export AWS_ACCESS_KEY_ID='{}'\n\
         export AWS_SECRET_ACCESS_KEY='{}'\n\
         export AWS_DEFAULT_REGION='{region}' AWS_REGION='{region}'\n\
         export AWS_DISABLE_HOST_PREFIX_INJECTION=true\n\
         export GANTRY_SUBNETS='{}' GANTRY_SECURITY_GROUP='sg-default'\n\
         unset AWS_PROFILE AWS_SESSION_TOKEN\n\
         aws() {{ command aws --endpoint-url \"$AWS_ENDPOINT_URL\" \"$@\"; }}\n",
        value("aws_access_key_id"),
        value("aws_secret_access_key"),
        subnets.join(","),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_the_lines() {
        let folder = tempfile::tempdir().unwrap();
        let args = ["--data-dir".to_string(), folder.path().display().to_string(), "--aws-port=4577".into()];
        let config = Config::from_args(&args).unwrap().0;
        assert!(lines(&config).is_err());
        std::fs::write(config.kubeconfig(), "").unwrap();
        assert_eq!(lines(&config).unwrap().lines().count(), 1);
        let keys = "[default]\naws_access_key_id = AKIAX\naws_secret_access_key = s/+=\n";
        std::fs::write(aws::credentials_file(&config), keys).unwrap();
        let script =
            lines(&config).unwrap() + "echo $AWS_ENDPOINT_URL $AWS_SECRET_ACCESS_KEY $GANTRY_SUBNETS";
        let said = std::process::Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&said.stdout).trim(),
            "http://127.0.0.1:4577 s/+= subnet-default-a,subnet-default-b,subnet-default-c"
        );
    }
}
