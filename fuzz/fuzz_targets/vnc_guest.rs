//! What a guest prints, in pieces with pauses between them.
#![no_main]

use ocivisor_vnc::terminal::{FIRST_SIZE, Terminal, View};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut terminal = Terminal::new(FIRST_SIZE);
    for piece in bytes.split(|byte| *byte == 0xff) {
        terminal.print(piece);
        assert_eq!(terminal.picture().size(), terminal.size());
        match piece.len() % 5 {
            0 => terminal.cut(),
            1 => terminal.look(View::PageUp),
            2 => terminal.rest(),
            _ => assert!(terminal.take_answers().len() <= 1024),
        }
    }
});
