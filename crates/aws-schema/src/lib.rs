//! What AWS services look like on the wire: operations, shapes and their constraints, as doc-free tables.
//!
//! Pure facts: no I/O, no clock. Tables stand in `specs/aws/`, made by `cargo xtask specs aws` from a pinned botocore
//! wheel. They are packed into the binary; a service's is unpacked when it is first asked for and stays. Only the
//! short [`Head`]s cost memory before. Deliberately not here: protocols and errors (`aws-server`), what operations do.

mod parse;
mod types;

pub use types::{
    Error, Head, Kind, Location, Member, Operation, Protocol, Service, Shape, ShapeId, Structure, TimeFormat,
};

use std::io::Read;
use std::sync::OnceLock;

include!(concat!(env!("OUT_DIR"), "/heads.rs"));

/// As many as there are tables; each is filled when its service is first asked for.
static LOADED: [OnceLock<Service>; TABLES.len()] = [const { OnceLock::new() }; TABLES.len()];

/// The heads of all services, by name.
pub fn heads() -> impl Iterator<Item = &'static Head> {
    TABLES.iter().map(|(head, ..)| head)
}

/// A service by its folder name in botocore: `ecs`, `elbv2`, `logs`.
pub fn service(name: &str) -> Option<&'static Service> {
    let at = TABLES.binary_search_by(|(head, ..)| head.name.cmp(name)).ok()?;
    let (head, packed, length) = &TABLES[at];
    Some(LOADED[at].get_or_init(|| {
        let mut text = String::with_capacity(*length);
        let read = flate2::read::ZlibDecoder::new(*packed).read_to_string(&mut text);
        read.expect("the build script packed this text");
        // Names and patterns are slices of it for as long as the process lives.
        parse::table(head, text.leak())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_modelled_operation_is_known_by_name() {
        let all: Vec<&Service> = heads().map(|h| service(h.name).unwrap()).collect();
        assert_eq!(all.iter().map(|s| s.operations.len()).sum::<usize>(), 1_857);
        assert_eq!(all.len(), 17);
        let shaped = all.iter().flat_map(|s| &s.operations).filter(|o| o.modelled).count();
        assert!(shaped > 1_100, "{shaped}");
        assert!(service("nope").is_none());
    }

    #[test]
    fn facts_of_a_known_operation() {
        let ecs = service("ecs").unwrap();
        assert_eq!((ecs.head.json_version, ecs.head.protocols), ("1.1", &[Protocol::Json][..]));
        let run = ecs.operation("RunTask").unwrap();
        let Kind::Structure(input) = &ecs.shape(run.input.unwrap()).kind else { panic!("a structure") };
        assert!(input.member("taskDefinition").unwrap().required);
        assert!(input.member("clientToken").unwrap().token && input.member("nope").is_none());
        let launch = ecs.shape(input.member("launchType").unwrap().shape);
        assert!(matches!(&launch.kind, Kind::String { values, .. } if values.contains(&"FARGATE")));
        assert_eq!(ecs.error("ClusterNotFoundException").unwrap().1.status, 400);
    }

    #[test]
    fn facts_of_other_protocols() {
        let iam = service("iam").unwrap();
        let (shape, error) = iam.error("NoSuchEntity").unwrap();
        assert_eq!((shape.name, error.status, error.sender), ("NoSuchEntityException", 404, true));
        let eks = service("eks").unwrap().operation("DescribeCluster").unwrap();
        assert_eq!((eks.method, eks.path), ("GET", "/clusters/{name}"));
        let web = service("sts").unwrap().operation("AssumeRoleWithWebIdentity").unwrap();
        assert!(web.unsigned && web.result_wrapper == "AssumeRoleWithWebIdentityResult");
        let ec2 = service("ec2").unwrap();
        assert!(
            ec2.operation("DescribeVpcs").unwrap().modelled
                && !ec2.operation("AcceptAddressTransfer").unwrap().modelled
        );
        let live = service("logs").unwrap().operation("StartLiveTail").unwrap();
        assert_eq!(live.host_prefix, "stream-");
        let sd = service("servicediscovery").unwrap();
        assert_eq!(sd.head.protocols, [Protocol::Cbor, Protocol::Json]);
    }
}
