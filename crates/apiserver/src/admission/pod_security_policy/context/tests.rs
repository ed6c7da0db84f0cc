//! Pods before and after a policy, in upstream's words.

use super::*;

fn policy(change: Value) -> Policy {
    let any = json!({"rule": "RunAsAny"});
    let mut spec = json!({"seLinux": any, "runAsUser": any, "fsGroup": any, "supplementalGroups": any,
        "allowPrivilegeEscalation": true});
    change.as_object().unwrap().iter().for_each(|(k, v)| spec[k] = v.clone());
    Policy::read(&json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
}

fn words(policy: &Policy, pod: &Value) -> Vec<String> {
    policy.check(pod).causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

#[test]
fn a_pod_is_completed_so_that_it_fits() {
    let range = json!({"rule": "MustRunAs", "ranges": [{"min": 10, "max": 20}]});
    let strict = policy(json!({"runAsUser": range, "fsGroup": range, "supplementalGroups": range,
        "requiredDropCapabilities": ["ALL"], "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false}));
    let mut pod = json!({"spec": {"containers": [{"name": "a"},
        {"name": "b", "securityContext": {"runAsUser": 15, "capabilities": {"drop": ["NET_RAW"]}}}]}});
    assert!(!words(&strict, &pod).is_empty());
    strict.complete(&mut pod);
    assert_eq!(words(&strict, &pod), Vec::<String>::new());
    let of = |i: usize| &pod["spec"]["containers"][i]["securityContext"];
    assert_eq!(
        of(0),
        &json!({"runAsUser": 10, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false})
    );
    assert_eq!(
        (&of(1)["runAsUser"], &of(1)["capabilities"]["drop"]),
        (&json!(15), &json!(["ALL", "NET_RAW"]))
    );
    assert_eq!(pod["spec"]["securityContext"], json!({"fsGroup": 10, "supplementalGroups": [10]}));
    let complete = pod.clone();
    strict.complete(&mut pod);
    assert_eq!(pod, complete, "what fits is left alone");
}

#[test]
fn what_does_not_fit_is_told_in_upstreams_words() {
    let none = policy(json!({}));
    let pod = |spec: Value, context: Value| {
        let mut pod = json!({"spec": spec});
        pod["spec"]["containers"] = json!([{"name": "a", "securityContext": context}]);
        pod
    };
    for (policy, pod, why) in [
        (
            &none,
            pod(json!({}), json!({"privileged": true})),
            "spec.containers[0].securityContext.privileged: Invalid value: true: Privileged containers are not allowed",
        ),
        (
            &none,
            pod(json!({"hostPID": true}), json!({})),
            "spec.securityContext.hostPID: Invalid value: true: Host PID is not allowed to be used",
        ),
        (
            &none,
            pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), json!({})),
            "spec.volumes[0]: Invalid value: \"hostPath\": hostPath volumes are not allowed to be used",
        ),
        (
            &none,
            pod(json!({}), json!({"capabilities": {"add": ["SYS_ADMIN"]}})),
            "spec.containers[0].securityContext.capabilities.add: Invalid value: \"SYS_ADMIN\": capability may not be added",
        ),
        (
            &none,
            pod(
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                json!({}),
            ),
            "pod.spec.securityContext.sysctls[0]: Forbidden: unsafe sysctl \"kernel.msgmax\" is not allowed",
        ),
        (
            &none,
            pod(json!({}), json!({"seccompProfile": {"type": "Unconfined"}})),
            "pod.metadata.annotations[container.seccomp.security.alpha.kubernetes.io/a]: Forbidden: seccomp may not be set",
        ),
        (
            &policy(json!({"runAsUser": {"rule": "MustRunAsNonRoot"}})),
            pod(json!({}), json!({"runAsUser": 0})),
            "spec.containers[0].securityContext.runAsUser: Invalid value: 0: running with the root UID is forbidden",
        ),
    ] {
        assert_eq!(words(policy, &pod), [why]);
    }
    let paths = policy(
        json!({"volumes": ["hostPath"], "allowedHostPaths": [{"pathPrefix": "/foo", "readOnly": true}]}),
    );
    for (path, read_only, fits) in [
        ("/foo/bar", true, true),
        ("/foo", true, true),
        ("/food", true, false),
        ("/foo/../etc", true, false),
        ("/foo", false, false),
    ] {
        let pod = json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": path}}],
            "containers": [{"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": read_only}]}]}});
        assert_eq!(words(&paths, &pod).is_empty(), fits, "{path}");
    }
}
