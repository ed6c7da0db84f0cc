//! The streams of exec, attach and port-forward: WebSocket here, SPDY in its own file. The names are the agent's.

pub mod spdy;

#[path = "../../../agent/src/nodeapi/ws/frame.rs"]
mod ws;

use futures_util::FutureExt;

/// Reads frames until the stream ends.
pub fn read_all(input: &[u8]) {
    let (mut rest, mut partial) = (input, None);
    // Reading from memory never waits, so every future is ready at once.
    while let Some(Ok(event)) = ws::read(&mut rest, &mut partial).now_or_never() {
        let payload = match event {
            ws::Event::Message(payload) | ws::Event::Ping(payload) => payload,
            ws::Event::Close => return,
        };
        assert!(payload.len() <= input.len(), "a payload that was not sent");
        let mut plain = Vec::new();
        ws::encode(ws::BINARY, &[&payload], &mut plain);
        assert!(plain.ends_with(&payload));
    }
}

/// Messages as clients send them.
pub fn seeds() -> Vec<Vec<u8>> {
    let frame = |head: u8, payload: &[u8]| {
        let mut frame = vec![head];
        match u8::try_from(payload.len()) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0xfe);
                frame.extend_from_slice(&u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[1, 2, 3, 4]);
        frame.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    };
    let fragments =
        [frame(1, b"a"), frame(0x89, b"ping"), frame(0, b"b"), frame(0x80, b"c"), frame(0x88, &[3, 232])];
    vec![frame(0x82, b"\x00hello"), fragments.concat(), frame(0x82, &[7; 200])]
}
