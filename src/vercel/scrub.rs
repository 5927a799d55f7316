//! Takes every secret of a request out of what its answer says.
//!
//! A server may repeat a secret in an error, plain or encoded, whole or in part. Every run of eight bytes that is part of a
//! secret in a known encoding is removed; a text that cannot be made safe is dropped whole.

use std::collections::HashMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

use crate::model::{AccessToken, SecretSet};

/// Stands where a secret stood.
pub(super) const REMOVED: &str = "[removed]";
/// What RFC 3986 calls unreserved stays; every other byte is percent-encoded.
pub(super) const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// A run of this many bytes out of a secret is recognised.
const WINDOW: usize = 8;
/// A value of fewer characters cannot be cut out of a text without saying what it was.
const CHARACTERS_MIN: usize = 4;

/// Knows the secrets of one request.
pub(super) struct Scrubber<'a> {
    secrets: Vec<&'a str>,
}

impl<'a> Scrubber<'a> {
    /// A scrubber for a request with this token and these secrets.
    pub(super) fn new(token: &'a AccessToken, secrets: Option<&'a SecretSet>) -> Self {
        let values = secrets
            .into_iter()
            .flat_map(|set| set.0.values().flat_map(|secret| secret.exposed()));
        Self::of(std::iter::once(token.expose()).chain(values))
    }

    /// A scrubber for these texts; the empty text is no secret.
    pub(super) fn of(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            secrets: secrets
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect(),
        }
    }

    /// The text without any secret; `None` when it cannot be made safe.
    pub(super) fn clean(&self, text: &str) -> Option<String> {
        let runs = self.find(text)?;
        let mut cleaned = String::with_capacity(text.len());
        let mut end = 0;
        for (from, to) in runs {
            cleaned.push_str(&text[end..from]);
            cleaned.push_str(REMOVED);
            end = to;
        }
        cleaned.push_str(&text[end..]);
        (!self.is_in(&cleaned)).then_some(cleaned)
    }

    /// Whether a secret, or a part of one, is in the text, as it is or once it is decoded.
    pub(super) fn is_in(&self, text: &str) -> bool {
        let found = |text: &str| self.find(text).is_none_or(|runs| !runs.is_empty());
        let unescaped = Zeroizing::new(json_unescaped(text));
        let decoded = Zeroizing::new(
            percent_decode_str(&unescaped)
                .decode_utf8_lossy()
                .into_owned(),
        );
        found(text) || found(&unescaped) || found(&decoded)
    }

    /// The byte ranges of the text that are part of a secret; `None` when a short secret is in it.
    fn find(&self, text: &str) -> Option<Vec<(usize, usize)>> {
        let mut search = Search::new(text);
        for secret in &self.secrets {
            let short = secret.chars().count() < CHARACTERS_MIN;
            let mut found = false;
            for_each_spelling(secret, &mut |spelling| found |= search.mark(spelling));
            if short && found {
                return None;
            }
        }
        Some(search.runs())
    }
}

/// One text and the parts of it that have been found in secrets.
struct Search<'t> {
    text: &'t str,
    windows: HashMap<[u8; WINDOW], bool>,
    marked: Vec<bool>,
}

impl<'t> Search<'t> {
    fn new(text: &'t str) -> Self {
        let windows = windows(text).map(|window| (window, false)).collect();
        Self {
            text,
            windows,
            marked: vec![false; text.len()],
        }
    }

    /// Marks the spelling and every window of it; returns whether any of it is in the text.
    fn mark(&mut self, spelling: &str) -> bool {
        let mut found = false;
        if spelling.len() >= WINDOW {
            for window in windows(spelling) {
                if let Some(seen) = self.windows.get_mut(&window) {
                    *seen = true;
                    found = true;
                }
            }
        } else if !spelling.is_empty() {
            for (at, matched) in self.text.match_indices(spelling) {
                self.marked[at..at + matched.len()].fill(true);
                found = true;
            }
        }
        found
    }

    /// The marked ranges, widened to whole characters, in order and apart from each other.
    fn runs(mut self) -> Vec<(usize, usize)> {
        for (at, window) in windows(self.text).enumerate() {
            if self.windows.get(&window) == Some(&true) {
                self.marked[at..at + WINDOW].fill(true);
            }
        }
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (at, character) in self.text.char_indices() {
            let end = at + character.len_utf8();
            if self.marked[at..end].contains(&true) {
                match runs.last_mut() {
                    Some(last) if last.1 == at => last.1 = end,
                    _ => runs.push((at, end)),
                }
            }
        }
        runs
    }
}

fn windows(text: &str) -> impl Iterator<Item = [u8; WINDOW]> {
    text.as_bytes()
        .windows(WINDOW)
        .map(|window| window.try_into().expect("a window has its length"))
}

/// Calls `visit` with the secret in every encoding that is looked for.
fn for_each_spelling(secret: &str, visit: &mut impl FnMut(&str)) {
    visit(secret);
    visit(unquoted(&json_escaped(secret)));
    visit(&json_ascii(secret));
    visit(&Zeroizing::new(html_escaped(secret)));
    let percent = Zeroizing::new(utf8_percent_encode(secret, RESERVED).to_string());
    visit(&percent);
    visit(&Zeroizing::new(percent.replace("%20", "+")));
    visit(&Zeroizing::new(percent_lower(&percent)));
    visit(&hex(secret, b"0123456789abcdef"));
    visit(&hex(secret, b"0123456789ABCDEF"));
    for alphabet in [BASE64_STANDARD, BASE64_URL] {
        for offset in 0..3 {
            visit(&base64(secret.as_bytes(), offset, alphabet));
        }
        visit(&base64_whole(secret.as_bytes(), alphabet));
    }
}

fn json_escaped(text: &str) -> Zeroizing<String> {
    Zeroizing::new(serde_json::to_string(text).expect("every string is JSON"))
}

fn unquoted(text: &str) -> &str {
    &text[1..text.len() - 1]
}

/// JSON with every character beyond printable ASCII as `\uXXXX`, and the slash escaped, as many servers write it.
fn json_ascii(text: &str) -> Zeroizing<String> {
    let escaped = json_escaped(text);
    let mut out = Zeroizing::new(String::with_capacity(6 * escaped.len()));
    for character in unquoted(&escaped).chars() {
        match character {
            '/' => out.push_str("\\/"),
            ' '..='~' => out.push(character),
            _ => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out
}

fn html_escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The same percent-encoding with lower-case digits.
fn percent_lower(percent: &str) -> String {
    let mut digits = 0;
    percent
        .chars()
        .map(|character| {
            let is_digit = digits > 0;
            digits = if character == '%' {
                2
            } else {
                digits - i32::from(is_digit)
            };
            if is_digit {
                character.to_ascii_lowercase()
            } else {
                character
            }
        })
        .collect()
}

fn hex(text: &str, digits: &[u8; 16]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(2 * text.len()));
    for byte in text.bytes() {
        out.push(char::from(digits[usize::from(byte >> 4)]));
        out.push(char::from(digits[usize::from(byte & 15)]));
    }
    out
}

const BASE64_STANDARD: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE64_URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The characters of base64 that depend on these bytes alone when they begin `offset` bytes into what is encoded.
///
/// Empty where these would be so few that they say nothing.
fn base64(bytes: &[u8], offset: usize, alphabet: &[u8; 64]) -> Zeroizing<String> {
    let padded = [&[0; 2][..offset], bytes].concat();
    let padded = Zeroizing::new(padded);
    let whole = base64_whole(&padded, alphabet);
    let from = (8 * offset).div_ceil(6);
    let to = 8 * padded.len() / 6;
    let own = whole
        .get(from..to)
        .filter(|own| own.len() >= CHARACTERS_MIN);
    Zeroizing::new(own.unwrap_or_default().to_owned())
}

/// Base64 of the bytes alone, without padding.
fn base64_whole(bytes: &[u8], alphabet: &[u8; 64]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..=group.len() {
            let digit = bits >> (18 - 6 * index) & 63;
            out.push(char::from(alphabet[digit as usize]));
        }
    }
    out
}

/// The text with its JSON escapes undone where they are valid, and everything else left alone.
fn json_unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at + 1..];
        let (character, taken) = match escape.as_bytes().first() {
            Some(b'n') => ('\n', 1),
            Some(b't') => ('\t', 1),
            Some(b'r') => ('\r', 1),
            Some(b'b') => ('\u{8}', 1),
            Some(b'f') => ('\u{c}', 1),
            Some(b'u') => escape
                .get(1..5)
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .and_then(char::from_u32)
                .map_or(('\\', 0), |character| (character, 5)),
            Some(b'"' | b'\\' | b'/') => (char::from(escape.as_bytes()[0]), 1),
            _ => ('\\', 0),
        };
        out.push(character);
        rest = &escape[taken..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "pa\"ss/wörd+se=cret\n&x";

    fn clean(text: &str) -> Option<String> {
        Scrubber::of([SECRET]).clean(text)
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (plain, encoded) in [
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(*base64_whole(plain.as_bytes(), BASE64_STANDARD), encoded);
        }
        assert_eq!(*base64_whole(&[0xfb, 0xff], BASE64_URL), "-_8");
    }

    #[test]
    fn a_text_without_a_secret_stays_as_it_is() {
        for text in ["", "billingPlan.id is unknown", "50% of \\n é"] {
            assert_eq!(clean(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_secret_is_removed_from_the_middle_of_a_text() {
        assert_eq!(
            clean(&format!("value '{SECRET}' is too short")).as_deref(),
            Some("value '[removed]' is too short")
        );
        assert_eq!(
            clean("value 'pa\"ss/wö…' is too short").as_deref(),
            Some("value '[removed]…' is too short")
        );
    }

    #[test]
    fn a_short_value_takes_the_whole_text_with_it() {
        let scrubber = Scrubber::of(["abc"]);
        assert_eq!(scrubber.clean("the value abc is bad"), None);
        assert_eq!(scrubber.clean("the value 616263 is bad"), None);
        assert_eq!(
            scrubber.clean("the value is bad").as_deref(),
            Some("the value is bad")
        );
    }

    #[test]
    fn what_is_encoded_twice_takes_the_whole_text_with_it() {
        let once = utf8_percent_encode("s/e/c/r/e/t", RESERVED).to_string();
        let twice = json_escaped(&once.replace('%', "\\u0025"));
        let scrubber = Scrubber::of(["s/e/c/r/e/t"]);
        assert_eq!(scrubber.clean(&json_unescaped(unquoted(&twice))), None);
    }

    #[test]
    fn each_way_to_write_a_secret_is_cut_out_and_leaves_the_rest() {
        let percent = utf8_percent_encode("k=é/ü?z{}", RESERVED).to_string();
        let lower = percent_lower(&percent);
        assert_eq!(lower, "k%3d%c3%a9%2f%c3%bc%3fz%7b%7d");
        for written in [
            "k=é/ü?z{}",
            &percent,
            &lower,
            "6b3dc3a92fc3bc3f7a7b7d",
            "6B3DC3A92FC3BC3F7A7B7D",
            r"k=\u00e9\/\u00fc?z{}",
            "az3DqS/DvD96e30",
            "az3DqS_DvD96e30",
        ] {
            let text = format!("value {written} is bad");
            assert_eq!(
                Scrubber::of(["k=é/ü?z{}"]).clean(&text).as_deref(),
                Some("value [removed] is bad"),
                "{written}"
            );
        }
    }

    #[test]
    fn each_valid_escape_of_json_is_undone_and_nothing_else() {
        for (written, meant) in [
            (r"a\nb", "a\nb"),
            (r"a\tb", "a\tb"),
            (r"a\rb", "a\rb"),
            (r"a\bb", "a\u{8}b"),
            (r"a\fb", "a\u{c}b"),
            (r#"a\"b"#, "a\"b"),
            (r"a\\b", r"a\b"),
            (r"a\/b", "a/b"),
            (r"a\u00e9b", "aéb"),
            (r"a\u00e", r"a\u00e"),
            (r"a\ud800b", r"a\ud800b"),
            (r"a\xb", r"a\xb"),
            ("a\\", "a\\"),
        ] {
            assert_eq!(json_unescaped(written), meant, "{written}");
        }
    }

    #[test]
    fn a_secret_is_found_as_it_is_though_it_reads_otherwise_once_it_is_decoded() {
        // Decoded as JSON or as a URL it is another text.
        for secret in ["p\\u0061ss\\u0061ge", "p%61ss%61ge", "p\\u0025ge%61b"] {
            let scrubber = Scrubber::of([secret]);
            assert!(
                scrubber.is_in(&format!("value {secret} is bad")),
                "{secret}"
            );
            assert!(!scrubber.is_in("value is bad"), "{secret}");
        }
        // And one that shows only once it is decoded.
        let scrubber = Scrubber::of(["passage"]);
        for text in ["p\\u0061ss\\u0061ge", "p%61ss%61ge", "p\\u002561ss%61ge"] {
            assert!(scrubber.is_in(text), "{text}");
        }
    }

    #[test]
    fn an_empty_value_is_no_secret() {
        assert_eq!(Scrubber::of([""]).clean("text").as_deref(), Some("text"));
    }

    fn spellings(secret: &str) -> Vec<String> {
        let mut all = Vec::new();
        for_each_spelling(secret, &mut |spelling| all.push(spelling.to_owned()));
        all.retain(|spelling| spelling.len() >= CHARACTERS_MIN);
        all
    }

    proptest! {
        // Each case tries every spelling against every other.
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_spelling_of_a_secret_survives(before in "[ -~é]{0,20}", secret in "\\PC{4,40}", after in "[ -~é]{0,20}") {
            let scrubber = Scrubber::of([secret.as_str()]);
            let spellings = spellings(&secret);
            for spelling in &spellings {
                if let Some(cleaned) = scrubber.clean(&format!("{before}{spelling}{after}")) {
                    let survivor = spellings.iter().find(|spelling| cleaned.contains(*spelling));
                    prop_assert_eq!(survivor, None, "{:?}", cleaned);
                }
            }
        }

        #[test]
        fn a_secret_inside_longer_base64_is_found(before in prop::collection::vec(any::<u8>(), 0..8), secret in "[a-zA-Z0-9]{8,40}", after in prop::collection::vec(any::<u8>(), 0..8)) {
            let payload = [&before[..], secret.as_bytes(), &after[..]].concat();
            for alphabet in [BASE64_STANDARD, BASE64_URL] {
                let encoded = base64_whole(&payload, alphabet);
                prop_assert!(Scrubber::of([secret.as_str()]).is_in(&encoded));
            }
        }

        #[test]
        fn a_part_of_a_secret_is_found(secret in "[a-zA-Z0-9]{12,40}", from in 0_usize..4) {
            let part = &secret[from..from + WINDOW];
            let cleaned = Scrubber::of([secret.as_str()]).clean(&format!("<{part}>"));
            prop_assert_eq!(cleaned.as_deref(), Some("<[removed]>"));
        }

        #[test]
        fn cleaning_never_panics(text in any::<String>(), secrets in prop::collection::vec(any::<String>(), 0..4)) {
            let scrubber = Scrubber::of(secrets.iter().map(String::as_str));
            if let Some(cleaned) = scrubber.clean(&text) {
                prop_assert!(!scrubber.is_in(&cleaned));
            }
        }
    }
}
