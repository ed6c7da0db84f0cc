//! Figures, printed: `cargo test --release -p registry --test it speed -- --ignored --nocapture`.

use crate::http::Bench;
use std::time::Instant;

#[test]
#[ignore = "a measurement"]
fn speed() {
    const MIB: usize = 256;
    let bench = Bench::new();
    let mut bytes = vec![0u8; MIB << 20];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = (n.wrapping_mul(0x9e37_79b9) >> 13) as u8;
    }
    let digest = testkit::image::digest(&bytes);
    let begun = Instant::now();
    bench.push("speed", &bytes);
    let pushed = begun.elapsed();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let begun = Instant::now();
        let reply = bench.get(&format!("/v2/speed/blobs/{digest}"));
        best = best.min(begun.elapsed().as_secs_f64());
        assert_eq!(reply.body.len(), bytes.len());
    }
    let rate = |seconds: f64| MIB as f64 / seconds;
    println!("push {:.0} MiB/s, pull {:.0} MiB/s", rate(pushed.as_secs_f64()), rate(best));
}
