//! Images from an enemy: names, manifests, tar streams and their unpacking.

use crate::digest::Digest;
use crate::limits::Limits;
use crate::oci::{ConfigDocument, Parsed};
use crate::reference::Reference;
use crate::tarball::{TarReader, skip_by_reading};
use crate::{ImageError, Target, unpack};

const BLOCK: usize = 512;
/// Small enough that every limit is met.
const LAYER_BYTES: u64 = 1 << 20;
const ENTRIES: u64 = 200;

pub const REFERENCE: Target = Target {
    name: "reference",
    run: |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let _ = Digest::parse(text);
        if let Ok(reference) = Reference::parse(text) {
            let shown = reference.to_string();
            assert_eq!(Reference::parse(&shown).as_ref(), Ok(&reference), "{text:?} shows as {shown:?}");
            assert!(!reference.repository().contains(".."));
        }
    },
    seeds: || {
        let digest = "sha256:".to_owned() + &"0123456789abcdef".repeat(4);
        let texts =
            ["nginx", "nginx:1.7.9", "localhost:5000/a/b_c:x", "docker.io/library/a", "[::1]:80/a", &digest];
        let mut all: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        all.push(format!("registry.example.com/team/app:v1@{digest}").into_bytes());
        all
    },
    words: &["@sha256:", "localhost", "docker.io/", ":5000", "library/", "__", "..", "[::1]"],
    writes: false,
};

pub const MANIFEST: Target = Target {
    name: "manifest",
    run: |input| {
        match Parsed::from_json(input, "a manifest") {
            Ok(Parsed::Index(list)) => list.iter().for_each(|d| drop(d.digest())),
            Ok(Parsed::Manifest { config, layers }) => {
                let _ = (config.digest(), layers.iter().map(|d| d.digest()).filter(Result::is_ok).count());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        if let Ok(config) = ConfigDocument::from_json(input) {
            let _ = config.diff_ids();
            let _ = config.into_config();
        }
    },
    seeds: || {
        let digest = "sha256:".to_owned() + &"ab".repeat(32);
        let descriptor = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":1}}"#
        );
        vec![
            format!(r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{descriptor},"layers":[{descriptor}]}}"#),
            format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#),
            format!(r#"{{"architecture":"amd64","os":"linux","config":{{"User":"1","Env":["A=b"],"Entrypoint":["/a"],"ExposedPorts":{{"80/tcp":{{}}}},"StopSignal":"SIGTERM"}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#),
        ]
        .into_iter()
        .map(String::into_bytes)
        .collect()
    },
    words: &[
        "\"manifests\":[]",
        "\"layers\":[]",
        "\"config\":{}",
        "null",
        "\"Volumes\":{}",
        "\"urls\":[]",
        "\"data\":\"\"",
    ],
    writes: false,
};

/// A tar header as we write it.
fn header(path: &str, kind: u8, size: u64, link: &str) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000755\x000000000\x000000000\0");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"14000000000");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    summed(&mut block);
    block
}

/// Makes a header's sum right: what an enemy can do too, and random changes cannot.
fn summed(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn with_sums(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    bytes.chunks_exact_mut(BLOCK).filter(|block| block[257..262] == *b"ustar").for_each(summed);
    bytes
}

fn file(path: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(path, b'0', content.len() as u64, "");
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A pax record: its length counts itself.
fn pax(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length =
        (1..4).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n).expect("short records");
    let mut bytes = file("pax", format!("{length} {key}={value}\n").as_bytes());
    bytes[156] = b'x';
    summed(&mut bytes[..BLOCK]);
    bytes
}

fn unpacked(input: &[u8]) {
    let bytes = with_sums(input);
    let mut tar = TarReader::new(&bytes[..], skip_by_reading);
    while let Ok(Some(entry)) = tar.next_entry() {
        assert!(entry.path.len() <= bytes.len());
    }
    let folder = tempfile::tempdir().expect("a place to unpack");
    let root = folder.path().join("root");
    std::fs::create_dir(&root).expect("a folder to unpack into");
    std::fs::write(folder.path().join("canary"), "alive").expect("a file beside it");
    let limits =
        Limits { layer_bytes: LAYER_BYTES, entries: ENTRIES, free_floor_bytes: 0, ..Limits::default() };
    match unpack::unpack(&bytes[..], &root, &limits) {
        Ok(rest) => assert!(rest.len() <= bytes.len()),
        Err(error @ ImageError::Reference(_)) => panic!("no name is read here: {error}"),
        Err(_) => {}
    }
    let names = std::fs::read_dir(folder.path()).expect("it is there").count();
    let canary = std::fs::read_to_string(folder.path().join("canary"));
    assert!(
        names == 2 && canary.is_ok_and(|text| text == "alive"),
        "something was written outside the layer"
    );
}

pub const LAYER: Target = Target {
    name: "layer",
    run: unpacked,
    seeds: || {
        let escape = [
            header("a", b'2', 0, "../canary"),
            file("a", b"x"),
            file("../canary", b"y"),
            header("b", b'1', 0, "../canary"),
        ];
        let plain = [
            header("d/", b'5', 0, ""),
            file("d/f", b"hello"),
            header("d/l", b'1', 0, "d/f"),
            file("d/.wh.f", b""),
        ];
        let long = [
            pax("path", "p/q"),
            file("short", b"1"),
            pax("SCHILY.xattr.user.a", "b"),
            file("x", b""),
            header("dev", b'3', 0, ""),
        ];
        let mut name = file("name", b"long/name\0");
        name[156] = b'L';
        summed(&mut name[..BLOCK]);
        let opaque = [
            name,
            file("z", b""),
            header("o/", b'5', 0, ""),
            file("o/.wh..wh..opq", b""),
            header("fifo", b'6', 0, ""),
        ];
        vec![plain.concat(), escape.concat(), long.concat(), opaque.concat()]
    },
    words: &[
        "../",
        "/",
        ".wh.",
        ".wh..wh..opq",
        "ustar",
        "00000000777",
        "\u{0}",
        "path=",
        "size=",
        "linkpath=",
        "mtime=1.5",
        "canary",
    ],
    writes: true,
};
