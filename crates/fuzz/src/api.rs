//! The API's own inputs: bodies, patches, selectors, paths, and the small languages within objects.

use crate::{Target, path, scan, schedule};
use jiff::{Timestamp, tz::TimeZone};
use k8s_schema::ResourceRow;
use machinery::apply::{self, Writer};
use machinery::kinds::strategy;
use machinery::quantity::Quantity;
use machinery::selector::{FieldSelector, LabelSelector};
use machinery::{body, intstr::IntOrString, patch, protobuf, time, walk};
use serde_json::Value;

/// Largest document that a target looks at: the search is for shapes, not for size.
const BYTES_MAX: usize = 16 << 10;

/// Two JSON documents, a line each; what follows the first line feed is the second one.
fn two(input: &[u8]) -> Option<(Value, Value)> {
    let at = input.iter().position(|b| *b == b'\n').filter(|_| input.len() < BYTES_MAX)?;
    let parse = |bytes: &[u8]| Some(body::json(bytes).ok()?.value);
    Some((parse(&input[..at])?, parse(&input[at + 1..])?))
}

fn lines(pairs: &[(&str, &str)]) -> Vec<Vec<u8>> {
    pairs.iter().map(|(first, second)| format!("{first}\n{second}").into_bytes()).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn size(value: &Value) -> usize {
    serde_json::to_vec(value).map_or(0, |bytes| bytes.len())
}

fn row(group: &str, plural: &str) -> &'static ResourceRow {
    k8s_schema::resource(group, "v1", plural).expect("a served kind")
}

const POD_TEXT: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"b"},"annotations":{"x":"y"},"finalizers":["a/b"]},"spec":{"containers":[{"name":"c","image":"i","args":["1"],"env":[{"name":"A","value":"1"}],"ports":[{"containerPort":80,"protocol":"TCP"}],"resources":{"limits":{"cpu":"1","memory":"1Gi"}},"volumeMounts":[{"name":"v","mountPath":"/v"}],"livenessProbe":{"httpGet":{"port":80,"path":"/"}}}],"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Mi"}}],"tolerations":[{"key":"k","operator":"Exists"}]}}"#;

const JSON_WORDS: &[&str] = &[
    "{}",
    "[]",
    "null",
    "true",
    "1e400",
    "-1",
    "\"\"",
    "\"a\":",
    ",",
    "0.1",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "\"op\":\"add\"",
    "\"op\":\"test\"",
    "\"op\":\"move\"",
    "\"op\":\"copy\"",
    "\"from\":\"/a\"",
    "\"path\":\"/-\"",
    "~1",
    "~0",
    "\"value\":",
];

pub const JSON_PATCH: Target = Target {
    name: "json-patch",
    run: |input| {
        let Some((target, edits)) = two(input) else { return };
        let (mut once, mut again) = (target.clone(), target);
        let results = (patch::json(&mut once, &edits), patch::json(&mut again, &edits));
        assert_eq!(results.0.is_ok(), results.1.is_ok());
        assert!(results.0.is_err() || once == again);
    },
    seeds: || {
        lines(&[
            (
                r#"{"a":[1,{"b":2}],"c/d":3}"#,
                r#"[{"op":"test","path":"/a/1/b","value":2},{"op":"add","path":"/a/-","value":{}}]"#,
            ),
            (
                r#"{"a":{"b":1},"e~f":2}"#,
                r#"[{"op":"move","from":"/a/b","path":"/c"},{"op":"copy","from":"/a","path":"/d"}]"#,
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"replace","path":"/a","value":[]},{"op":"remove","path":"/a"},{"op":"add","path":"","value":1}]"#,
            ),
        ])
    },
    words: JSON_WORDS,
    writes: false,
};

pub const MERGE_PATCH: Target = Target {
    name: "merge-patch",
    run: |input| {
        let Some((target, edits)) = two(input) else { return };
        let mut once = target;
        patch::merge(&mut once, &edits);
        let mut twice = once.clone();
        patch::merge(&mut twice, &edits);
        assert_eq!(once, twice, "a merge made twice is one made once");
    },
    seeds: || {
        lines(&[
            (r#"{"a":{"b":1,"c":2},"d":[1]}"#, r#"{"a":{"b":null,"e":{"f":null}},"d":[2]}"#),
            ("[1]", r#"{"a":null}"#),
        ])
    },
    words: JSON_WORDS,
    writes: false,
};

pub const STRATEGIC_PATCH: Target = Target {
    name: "strategic-patch",
    run: |input| {
        let Some((mut target, edits)) = two(input) else { return };
        let before = size(&target) + size(&edits);
        if patch::strategic(&mut target, &edits, row("", "pods").def.get()).is_ok() {
            assert!(size(&target) <= before, "a patch makes nothing up");
        }
    },
    seeds: || {
        lines(&[
            (
                POD_TEXT,
                r#"{"spec":{"containers":[{"name":"c","image":"j","env":[{"$patch":"delete","name":"A"}]},{"name":"d"}],"$setElementOrder/containers":[{"name":"d"},{"name":"c"}]}}"#,
            ),
            (
                POD_TEXT,
                r#"{"metadata":{"finalizers":["c/d"],"$deleteFromPrimitiveList/finalizers":["a/b"],"labels":{"$patch":"replace","z":"1"}}}"#,
            ),
            (
                POD_TEXT,
                r#"{"spec":{"volumes":[{"name":"v","$retainKeys":["name","hostPath"],"hostPath":{"path":"/"}}],"containers":[{"$patch":"replace"},{"name":"x"}]}}"#,
            ),
        ])
    },
    words: &[
        "\"$patch\":\"delete\"",
        "\"$patch\":\"replace\"",
        "\"$patch\":\"merge\"",
        "\"$retainKeys\":[\"name\"]",
        "\"$setElementOrder/containers\":[]",
        "\"$deleteFromPrimitiveList/finalizers\":[]",
        "\"name\":\"c\"",
        "null",
        "\"containerPort\":80",
        "[]",
        "{}",
        ",",
        "\"mountPath\":\"/v\"",
        "\"ports\":",
        "\"env\":",
    ],
    writes: false,
};

pub const SELECTORS: Target = Target {
    name: "selectors",
    run: |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let labels = |key: &str| matches!(key, "a" | "b" | "x/y").then_some("1");
        if let Ok(selector) = LabelSelector::parse(text) {
            let matches = selector.matches_by(labels);
            assert!(!selector.is_everything() || matches);
        }
        if let Ok(selector) = FieldSelector::parse(text) {
            let pinned = selector.exact("metadata.name").map(str::to_owned);
            let matches = selector.matches(|_| pinned.clone());
            assert!(!selector.is_empty() || matches);
        }
        if let Ok(body) = body::json(input) {
            let _ = LabelSelector::from_json(Some(&body.value)).map(|s| s.matches_by(labels));
        }
    },
    seeds: || {
        texts(&[
            "a=1,b!=2,!c,x/y",
            "a in (1,2),b notin (,3)",
            "a>1,b<2",
            "a==1",
            "metadata.name=p,status.phase!=Running",
            "a=\\,b,c=\\=",
            r#"{"matchLabels":{"a":"1"},"matchExpressions":[{"key":"b","operator":"NotIn","values":["2"]}]}"#,
        ])
    },
    words: &[
        " in ",
        " notin ",
        "(",
        ")",
        ",",
        "!=",
        "==",
        "!",
        ">",
        "<",
        "\\",
        "metadata.name=",
        "\"operator\":\"Exists\"",
    ],
    writes: false,
};

pub const BODY: Target = Target {
    name: "body",
    run: |input| {
        if let Ok(parsed) = body::json(input) {
            assert_eq!(serde_json::from_slice::<Value>(input).ok().as_ref(), Some(&parsed.value));
        }
        let _ = body::yaml(input);
    },
    seeds: || {
        texts(&[
            r#"{"a":[1,2.5,-3e2,"\u00e4\ud83d\ude00",true,null,{"a":1,"a":2}]}"#,
            "a: &x [1, two, 3.0]\nb: *x\nc: |\n  text\n  more\nd: {e: ~, f: 0x1f, g: 2026-01-01}\n",
            "- a: 1\n  b: 'q'\n- !!str 5\n- ? k\n  : v\n<<: {a: 1}\n",
        ])
    },
    words: &[
        "&a ", "*a", "<<: ", "!!", "|\n", ">-\n", "---\n", "...\n", "%YAML", ": ", "- ", "\"", "{", "[",
        "? ", "\n  ",
    ],
    writes: false,
};

pub const PROTOBUF: Target = Target {
    name: "protobuf",
    run: |input| {
        let Ok(object) = protobuf::object(input) else { return };
        // Read once it is canonical: from there on nothing changes.
        let Ok(sealed) = protobuf::sealed(&object) else { return };
        let again = protobuf::object(&sealed).expect("what we wrote is readable");
        let resealed = protobuf::sealed(&again).expect("what we read is writable");
        assert_eq!(protobuf::object(&resealed).ok(), Some(again));
    },
    seeds: || {
        let documents = [
            POD_TEXT,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","creationTimestamp":"2026-01-01T00:00:00Z"},"data":{"k":"v"},"binaryData":{"b":"AAE="}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":80,"targetPort":"http"},{"port":81,"targetPort":8080}],"selector":{"a":"b"}}}"#,
            r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":2,"selector":{"matchLabels":{"a":"b"}},"template":{"spec":{"containers":[]}},"strategy":{"rollingUpdate":{"maxSurge":"25%"}}}}"#,
            r#"{"apiVersion":"v1","kind":"DeleteOptions","gracePeriodSeconds":0,"preconditions":{"uid":"u"}}"#,
        ];
        let sealed = |text: &str| {
            protobuf::sealed(&serde_json::from_str(text).expect("JSON")).expect("of a known kind")
        };
        documents.iter().map(|text| sealed(text)).collect()
    },
    words: &["k8s\0", "Pod", "List", "v1", "Secret", "apps/v1", "\u{a}\u{2}v1"],
    writes: false,
};

/// `live` under the hands of an updater and an applier.
fn applied(kind: (&str, &str), (live, config): (Value, Value)) {
    let row = row(kind.0, kind.1);
    let sibling = |version: &str| (version == row.api_version()).then_some(row);
    let writer = |manager, now| Writer { manager, subresource: "", now, row, sibling: &sibling };
    let mut live = live;
    if !live["metadata"].is_object()
        || walk::decode(&mut live, row.def.get(), walk::Unknown::Drop, &Default::default()).is_err()
    {
        return;
    }
    if let Some(list) = apply::update(&writer("first", "2026-01-01T00:00:00Z"), None, &mut live) {
        live["metadata"]["managedFields"] = list;
    }
    for manager in ["kubectl", "second"] {
        let Ok(mut once) =
            apply::apply(&writer(manager, "2026-01-01T00:00:01Z"), Some(live.clone()), &config, true)
        else {
            continue;
        };
        if walk::decode(&mut once, row.def.get(), walk::Unknown::Drop, &Default::default()).is_err() {
            continue;
        }
        let Ok(twice) =
            apply::apply(&writer(manager, "2026-01-01T00:00:02Z"), Some(once.clone()), &config, true)
        else {
            panic!("what was applied by force cannot be applied again")
        };
        let _ = twice;
    }
}

pub const APPLY: Target = Target {
    name: "apply",
    run: |input| {
        let Some(documents) = two(input) else { return };
        let kinds = [("", "pods"), ("apps", "deployments"), ("", "configmaps"), ("", "services")];
        for (group, plural) in kinds {
            if documents.0["kind"] == *row(group, plural).kind {
                applied((group, plural), documents.clone());
            }
        }
    },
    seeds: || {
        let managed = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","managedFields":[{"manager":"kubectl","operation":"Apply","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:data":{".":{},"f:k":{}},"f:metadata":{"f:finalizers":{"v:\"a/b\"":{}}}}}]},"data":{"k":"v"}}"#;
        let pod = POD_TEXT.replace(r#""finalizers":["a/b"]"#, r#""managedFields":[{"manager":"m","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{}},"f:args":{"i:0":{}}}}}}]"#);
        lines(&[
            (
                managed,
                r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","finalizers":["c/d"]},"data":{"j":"1"}}"#,
            ),
            (
                &pod,
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"j","ports":[{"containerPort":81}]}]}}"#,
            ),
            (POD_TEXT, POD_TEXT),
            (
                r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":80,"protocol":"TCP"}]}}"#,
                r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":80,"protocol":"UDP"},{"port":80}]}}"#,
            ),
        ])
    },
    words: &[
        "\"f:spec\":{",
        "\"f:metadata\":{",
        "\".\":{}",
        "k:{\\\"name\\\":\\\"c\\\"}",
        "v:\\\"a\\\"",
        "i:0",
        "\"fieldsV1\":{}",
        "\"operation\":\"Apply\"",
        "\"operation\":\"Update\"",
        "\"subresource\":\"status\"",
        "null",
        "{}",
        "[]",
        ",",
        "\"containerPort\":80",
        "\"protocol\":\"TCP\"",
        "\"name\":\"c\"",
    ],
    writes: false,
};

pub const POD: Target = Target {
    name: "pod",
    run: |input| {
        let Ok(body) = body::json(input) else { return };
        let (row, mut pod) = (row("", "pods"), body.value);
        if input.len() > BYTES_MAX
            || walk::decode(&mut pod, row.def.get(), walk::Unknown::Warn, &body.duplicates).is_err()
        {
            return;
        }
        strategy::defaults(row, &mut pod);
        let once = pod.clone();
        strategy::defaults(row, &mut pod);
        assert_eq!(once, pod, "defaults change nothing the second time");
        strategy::prepare_create(row, &mut pod);
        let _ = strategy::validate_create(row, &pod);
    },
    seeds: || texts(&[POD_TEXT]),
    words: &[
        "\"initContainers\":[",
        "\"securityContext\":{",
        "\"runAsUser\":0",
        "\"hostNetwork\":true",
        "\"tcpSocket\":{\"port\":1}",
        "\"exec\":{\"command\":[]}",
        "\"grpc\":{\"port\":1}",
        "\"secret\":{}",
        "\"projected\":{\"sources\":[{}]}",
        "null",
        "-1",
        "\"affinity\":{\"nodeAffinity\":{}}",
        "\"topologySpreadConstraints\":[{}]",
        "\"resources\":{\"requests\":{\"cpu\":\"2\"}}",
        "\"ephemeralContainers\":[{}]",
        "\"restartPolicy\":\"Always\"",
        "\"overhead\":{}",
        "\"hostUsers\":false",
        "\"sysctls\":[{}]",
        "\"lifecycle\":{\"preStop\":{\"sleep\":{\"seconds\":1}}}",
        "\"downwardAPI\":{\"items\":[{}]}",
        "[]",
        "{}",
        ",",
    ],
    writes: false,
};

pub const QUANTITY: Target = Target {
    name: "quantity",
    run: |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(quantity) = text.parse::<Quantity>() {
            let shown = quantity.to_string();
            let again: Quantity =
                shown.parse().unwrap_or_else(|e| panic!("{text:?} shows as {shown:?}: {e}"));
            assert_eq!(quantity.milli(), again.milli(), "{text:?} shows as {shown:?}");
            assert_eq!(shown, again.to_string());
            assert_eq!(quantity.sub(quantity).sign(), 0);
            let _ = (quantity.add(again), quantity.units(), quantity.rounded_to_milli());
        }
        let number = IntOrString::Str(text.to_owned());
        for total in [0, 1, i32::MAX] {
            if let (Some(down), Some(up)) = (number.scaled(total, false), number.scaled(total, true)) {
                assert!(up >= down && up.saturating_sub(down) <= 1, "{text:?} of {total}: {down} to {up}");
            }
        }
        if let Ok(at) = time::parse(text) {
            assert_eq!(
                time::parse(&time::format_micro(at)).ok().map(|t| t.as_microsecond()),
                Some(at.as_microsecond())
            );
        }
    },
    seeds: || {
        texts(&[
            "1",
            "1.5Gi",
            "-100m",
            "1e3",
            "12E",
            ".5",
            "9223372036854775807",
            "1u",
            "3n",
            "2e-9",
            "50%",
            "33%",
            "0Ki",
            "+1.",
            "2026-01-01T00:00:00Z",
            "2026-06-30T23:59:60.5+02:00",
        ])
    },
    words: &[
        "Ki",
        "Mi",
        "Ei",
        "Pi",
        "e",
        "E",
        "m",
        "n",
        "u",
        "-",
        ".",
        "%",
        "999999999999999999",
        "T",
        "Z",
        "+00:00",
    ],
    writes: false,
};

pub const CRON: Target = Target {
    name: "cron",
    run: |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Some(schedule) = schedule::Schedule::parse(text) else { return };
        let start = Timestamp::from_second(1_780_000_000).expect("in range");
        if let Some(next) = schedule.next(start, &TimeZone::UTC) {
            assert!(next > start, "{text:?}");
            let due = schedule.last_due(start, next, &TimeZone::UTC, 100);
            assert_eq!(due, Some((next, 1)), "{text:?}");
        }
    },
    seeds: || {
        texts(&[
            "*/5 * * * *",
            "0 0 29 2 *",
            "1,2-9/3 0 ? JAN-dec mon",
            "@daily",
            "@every 1h30m",
            "59 23 31 12 6",
        ])
    },
    words: &[
        "@every ",
        "@yearly",
        "1h",
        "30m",
        "0.5s",
        "-",
        "/",
        ",",
        "*",
        "?",
        "feb",
        "sun",
        "29 2",
        "4294967295",
    ],
    writes: false,
};

pub const PATH: Target = Target {
    name: "path",
    run: |input| {
        let text = String::from_utf8_lossy(input);
        let (path, query) = text.split_once('?').unwrap_or((&text, ""));
        if let path::Path::Resource(found) = path::parse(path) {
            assert!(!found.version.is_empty() || path.contains('%'), "{found:?}");
        }
        let query = path::Query::parse(query);
        let _ = (query.get("a"), query.flag("watch"), query.pairs().count());
        let _ = scan::string_at(input, &["metadata", "name"]);
        // Put into what is canonical, the revision is there; anything else finds nothing and panics never.
        let spliced = scan::with_revision(input, 7);
        let _ = scan::without(input, &["metadata", "name"]);
        if let Ok(mut value) = serde_json::from_slice::<Value>(input)
            && serde_json::to_vec(&value).is_ok_and(|canonical| canonical == input)
            && value["metadata"].is_object()
        {
            value["metadata"]["resourceVersion"] = "7".into();
            assert_eq!(serde_json::from_slice::<Value>(&spliced).ok(), Some(value));
        }
    },
    seeds: || {
        texts(&[
            "/api/v1/namespaces/default/pods/p/log?container=c&follow=true",
            "/apis/apps/v1/watch/deployments?labelSelector=a%3Db",
            "/api/v1/namespaces/n/services/http:s:80/proxy/a/%2e%2e/b?x=1;y",
            "/api/v1/namespaces/n/finalize",
            r#"{"kind":"A","metadata":{"name":"n","uid":"u"},"spec":{"a":["}",{"b":"\\\""}]}}"#,
            r#"{"metadata":{"resourceVersion":"3"}}"#,
            r#"{"metadata":{}}"#,
        ])
    },
    words: &[
        "/api/",
        "/apis/",
        "v1",
        "namespaces/",
        "watch/",
        "proxy/",
        "%2F",
        "%",
        "//",
        "?",
        "&",
        "=",
        "+",
        "\"metadata\":{",
        "\"resourceVersion\":\"1\"",
    ],
    writes: false,
};
