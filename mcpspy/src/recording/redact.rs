//! Masks the values of headers that carry credentials, at equal length, so that positions and sizes
//! in a recording stay true.

/// Names of headers, lower case, with their colon.
const SECRET: [&[u8]; 5] = [
    b"authorization:",
    b"cookie:",
    b"proxy-authorization:",
    // What `docker pull` and `docker build` hand to the engine.
    b"x-registry-auth:",
    b"x-registry-config:",
];

/// Longest of [`SECRET`].
const LONGEST: usize = 20;

/// What a masked byte becomes.
const MASK: u8 = b'*';

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// So many bytes into a line, all of which could still become a secret name.
    Name(usize),
    /// In a line that matters to nobody.
    #[default]
    Plain,
    /// In a value to mask.
    Value,
    /// At the start of the line after one: white space there continues the value.
    Fold,
}

/// Masks one direction of a stream. Calls may cut names and values anywhere.
#[derive(Clone, Debug)]
pub struct Redactor {
    state: State,
    name: [u8; LONGEST],
}

impl Default for Redactor {
    fn default() -> Self {
        Self { state: State::Name(0), name: [0; LONGEST] }
    }
}

impl Redactor {
    /// Masks the next bytes of the stream in place. `call_start` says that a system call begins
    /// with them: what it starts with is taken for the start of a line, since the bytes before it
    /// may not have been captured. Rather one value too many than one too few.
    pub fn mask(&mut self, bytes: &mut [u8], call_start: bool) {
        if call_start && self.state == State::Plain {
            self.state = State::Name(0);
        }
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::Plain => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let Some(end) = memchr::memchr(b'\n', rest) else { return };
                    at += end;
                    self.state = State::Name(0);
                }
                State::Name(length) => self.state = self.in_name(length, byte),
                State::Value => {
                    if byte == b'\n' {
                        self.state = State::Fold;
                    } else if byte != b'\r' {
                        mask(bytes, at);
                    }
                }
                State::Fold => {
                    if matches!(byte, b' ' | b'\t') {
                        self.state = State::Value;
                    } else {
                        self.state = self.in_name(0, byte);
                    }
                }
            }
            at += 1;
        }
    }

    fn in_name(&mut self, length: usize, byte: u8) -> State {
        if byte == b'\n' {
            return State::Name(0);
        }
        let Some(place) = self.name.get_mut(length) else { return State::Plain };
        *place = byte.to_ascii_lowercase();
        let name = self.name.get(..=length).unwrap_or_default();
        if SECRET.contains(&name) {
            State::Value
        } else if SECRET.iter().any(|secret| secret.starts_with(name)) {
            State::Name(length + 1)
        } else {
            State::Plain
        }
    }
}

fn mask(bytes: &mut [u8], at: usize) {
    if let Some(byte) = bytes.get_mut(at)
        && *byte != b' '
    {
        *byte = MASK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &[u8] =
        b"POST /mcp HTTP/1.1\r\nHost: a\r\nauthorization: Bearer abc\r\n def\r\n\
        X-Cookie: kept\r\nCOOKIE:a=b; c=d\nX-Registry-Auth: eyJ9\r\nX-Registry-X: y\r\nProxy-Authorization:\r\nAccept: */*\r\n\r\ncookie";
    const MASKED: &[u8] = b"POST /mcp HTTP/1.1\r\nHost: a\r\nauthorization: ****** ***\r\n ***\r\n\
        X-Cookie: kept\r\nCOOKIE:**** ***\nX-Registry-Auth: ****\r\nX-Registry-X: y\r\nProxy-Authorization:\r\nAccept: */*\r\n\r\ncookie";

    #[test]
    fn values_are_masked_at_equal_length_however_they_are_cut() {
        for cut in 0..=REQUEST.len() {
            let mut bytes = REQUEST.to_vec();
            let mut redactor = Redactor::default();
            let (one, two) = bytes.split_at_mut(cut);
            redactor.mask(one, true);
            redactor.mask(two, false);
            let (masked, expected) = (std::str::from_utf8(&bytes), std::str::from_utf8(MASKED));
            assert_eq!(masked, expected, "cut at {cut}");
        }
    }

    #[test]
    fn json_stays_as_it_is() {
        let line = b"{\"a\":\"Authorization: Bearer x\"}\n{\"cookie\": 1}\n".to_vec();
        let mut bytes = line.clone();
        Redactor::default().mask(&mut bytes, true);
        assert_eq!(bytes, line);
    }

    #[test]
    fn a_call_that_starts_with_a_secret_is_masked_even_after_an_unfinished_line() {
        let mut redactor = Redactor::default();
        redactor.mask(&mut b"GET / HTTP/1.1 (rest not captured)".to_vec(), true);
        let mut bytes = b"Cookie: a".to_vec();
        redactor.mask(&mut bytes, true);
        assert_eq!(bytes, b"Cookie: *");
    }
}
