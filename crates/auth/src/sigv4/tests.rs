//! Against botocore's signer (vectors made with botocore 1.44.5, see each) and against wrong requests.

use super::vectors::VECTORS;
use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn headers(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
}

#[test]
fn what_botocore_signed_is_accepted_and_nothing_else() {
    for vector in VECTORS {
        let headers = headers(vector.headers);
        let head = Head { method: vector.method, path: vector.path, query: vector.query, headers: &headers };
        let presented = head.presented().unwrap().unwrap();
        assert_eq!(
            (presented.access_key.as_str(), presented.region.as_str()),
            ("AKIDEXAMPLE", "us-east-1"),
            "{head:?}"
        );
        let body = vector.body.as_bytes();
        assert_eq!(presented.verify(&head, SECRET, body), Ok(()), "{head:?}");
        assert_eq!(presented.verify(&head, "other", body), Err(SignatureError::Mismatch));
        let unsigned = presented.payload == Payload::Unsigned;
        assert_eq!(presented.verify(&head, SECRET, b"other").is_ok(), unsigned, "{head:?}");
        let moved = Head { path: "/other", ..head };
        assert_eq!(presented.verify(&moved, SECRET, body), Err(SignatureError::Mismatch));
        let asked = format!("{}&z=1", head.query);
        assert_eq!(
            presented.verify(&Head { query: &asked, ..head }, SECRET, body),
            Err(SignatureError::Mismatch)
        );
        let mut other = headers.clone();
        other.iter_mut().filter(|(n, _)| n == "host").for_each(|(_, v)| *v = "evil".into());
        assert!(presented.verify(&Head { headers: &other, ..head }, SECRET, body).is_err());
        let at = parse_compact(&presented.at).unwrap();
        let life = if presented.presigned { presented.expires } else { SKEW_SECONDS };
        assert_eq!(presented.check_time(at + life), Ok(()));
        let late = presented.check_time(at + life + 1).unwrap_err().to_string();
        assert!(late.starts_with("Signature expired: ") && late.contains(" is now earlier than "), "{late}");
        let early = presented.check_time(at - SKEW_SECONDS - 1).unwrap_err().to_string();
        assert!(early.starts_with("Signature not yet current: ") && early.ends_with("+ 5 min.)"), "{early}");
    }
}

#[test]
fn parts_that_are_missing_or_odd_are_named() {
    let say = |list: &[(&str, &str)], query: &str| {
        let headers = headers(list);
        Head { method: "POST", path: "/", query, headers: &headers }.presented()
    };
    assert_eq!(say(&[("host", "h")], "Action=X"), Ok(None));
    let date = ("x-amz-date", "20150830T123600Z");
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        (&[("authorization", "Bearer x")], "", "Unsupported AWS 'algorithm': 'Bearer'."),
        (&[("authorization", "AWS4-HMAC-SHA256 Credential=a/b"), date], "", "requires 'Signature' parameter"),
        (
            &[("authorization", "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=00")],
            "",
            "'X-Amz-Date'",
        ),
        (
            &[("authorization", "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=00"), date],
            "",
            "5 slash",
        ),
        (
            &[
                (
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=a/20150831/r/s/aws4_request, SignedHeaders=host, Signature=00",
                ),
                date,
            ],
            "",
            "'20150831' != '20150830'",
        ),
        (
            &[
                (
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/aws4_request, SignedHeaders=x, Signature=00",
                ),
                date,
            ],
            "",
            "must be a 'SignedHeader'",
        ),
        (
            &[
                (
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/aws4_request, SignedHeaders=host, Signature=00",
                ),
                date,
            ],
            "",
            "does not match the signature",
        ),
        (&[], "X-Amz-Algorithm=AWS4-HMAC-SHA256", "'X-Amz-Expires'"),
        (&[], "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=700000", "between 0 and 604800"),
        (&[], "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256", "Unsupported"),
    ];
    for (list, query, words) in cases {
        let error = say(list, query).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_target_that_is_not_signed_is_refused() {
    let vector = VECTORS.iter().find(|v| v.headers.iter().all(|(n, _)| *n != "x-amz-target")).unwrap();
    let mut headers = headers(vector.headers);
    headers.push(("x-amz-target".into(), "X.DeleteAll".into()));
    let head = Head { method: vector.method, path: vector.path, query: vector.query, headers: &headers };
    let presented = head.presented().unwrap().unwrap();
    assert!(matches!(
        presented.verify(&head, SECRET, vector.body.as_bytes()),
        Err(SignatureError::Incomplete(_))
    ));
}

/// AWS's own documented example of a link to S3.
#[test]
fn a_link_to_s3_says_nothing_of_the_body() {
    let list = headers(&[("host", "examplebucket.s3.amazonaws.com")]);
    let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F\
        aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=\
        aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    let head = Head { method: "GET", path: "/test.txt", query, headers: &list };
    let presented = head.presented().unwrap().unwrap();
    assert_eq!(presented.verify(&head, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", b"any"), Ok(()));
}

/// AWS's own documented example of a chunked upload (two chunks and the last).
#[test]
fn chunks_follow_the_seed() {
    let list = headers(&[
        ("host", "s3.amazonaws.com"),
        ("x-amz-date", "20130524T000000Z"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("content-encoding", "aws-chunked"),
        ("content-length", "66824"),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
             x-amz-decoded-content-length;x-amz-storage-class,\
             Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        ),
    ]);
    let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    let head = Head { method: "PUT", path: "/examplebucket/chunkObject.txt", query: "", headers: &list };
    let presented = head.presented().unwrap().unwrap();
    assert_eq!(presented.payload, Payload::SignedChunks);
    assert_eq!(presented.verify(&head, secret, b""), Ok(()));
    let chunk = |length: usize, signature: &str| {
        let mut part = format!("{length:x};chunk-signature={signature}\r\n").into_bytes();
        part.extend(std::iter::repeat_n(b'a', length));
        part.extend(b"\r\n");
        part
    };
    let mut body = chunk(65_536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648");
    body.extend(chunk(1_024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"));
    body.extend(chunk(0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"));
    assert_eq!(presented.chunks(secret).read(&body).map(|b| b.len()), Ok(66_560));
    body[100] = b'b';
    assert_eq!(presented.chunks(secret).read(&body), Err(ChunkError::Mismatch));
    assert_eq!(presented.chunks(secret).read(b"zz"), Err(ChunkError::Malformed));
    let plain = Presented { payload: Payload::UnsignedChunks, ..presented };
    let body = b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n";
    assert_eq!(plain.chunks(secret).read(body), Ok(b"abc".to_vec()));
}
