//! Files that hold one secret or certificates.
//!
//! A secret file is small, regular, not readable by everyone, UTF-8 and not empty; one newline at its end is not part of
//! the secret. Errors never hold content.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// Reads a secret from a file.
pub(crate) fn read(path: &Path) -> Result<SecretString, SecretFileError> {
    let (bytes, mode) = bytes(path)?;
    if mode & READABLE_BY_OTHERS != 0 {
        return Err(SecretFileError::Open {
            path: path.to_owned(),
            mode: mode & 0o7777,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| SecretFileError::Encoding {
        path: path.to_owned(),
    })?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| {
        line.strip_suffix('\r').unwrap_or(line)
    });
    if text.trim().is_empty() {
        return Err(SecretFileError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(text.into())
}

/// Checks that a file can be read and holds a certificate in PEM form.
pub(crate) fn check_certificates(path: &Path) -> Result<(), SecretFileError> {
    let (bytes, _) = bytes(path)?;
    let mark = b"-----BEGIN CERTIFICATE-----";
    if bytes.windows(mark.len()).any(|window| window == mark) {
        return Ok(());
    }
    Err(SecretFileError::NoCertificate {
        path: path.to_owned(),
    })
}

/// Reads the configuration file itself: its text and its mode.
pub(crate) fn read_text(path: &Path) -> Result<(String, u32), SecretFileError> {
    let (bytes, mode) = bytes(path)?;
    let text = String::from_utf8(bytes).map_err(|_| SecretFileError::Encoding {
        path: path.to_owned(),
    })?;
    Ok((text, mode))
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretFileError {
    /// It is not there, or may not be read.
    #[error("{} cannot be read: {}", shown(.path), reason(.source))]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is a directory, pipe or device.
    #[error("{} is not a regular file", shown(.path))]
    NotAFile { path: PathBuf },
    /// It is larger than any such file.
    #[error("{} is larger than {} KiB", shown(.path), FILE_BYTES_MAX / 1024)]
    TooLarge { path: PathBuf },
    /// It is not text.
    #[error("{} is not UTF-8 text", shown(.path))]
    Encoding { path: PathBuf },
    /// Nothing is in it.
    #[error("{} is empty", shown(.path))]
    Empty { path: PathBuf },
    /// Everyone may read it.
    #[error("{} is readable by everyone (mode {mode:04o})", shown(.path))]
    Open { path: PathBuf, mode: u32 },
    /// No certificate is in it.
    #[error("{} holds no certificate in PEM form", shown(.path))]
    NoCertificate { path: PathBuf },
}

/// A path as it may be repeated: what stands where a path belongs may be the secret itself.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    match text.contains("://") {
        true => "what is named there is a URL and no file, and".to_owned(),
        false => text,
    }
}

/// The permission bit that lets everyone read.
pub(crate) const READABLE_BY_OTHERS: u32 = 0o004;

/// Largest file that is read: a system's bundle of certificate authorities has some 250 KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

fn bytes(path: &Path) -> Result<(Vec<u8>, u32), SecretFileError> {
    let unreadable = |source| SecretFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // Asked before opening: opening a pipe without a writer would wait for one.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SecretFileError::NotAFile {
            path: path.to_owned(),
        });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode();
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(SecretFileError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok((bytes, mode))
}

/// The system's words without its error number.
fn reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), content).expect("the file is writable");
        fs::set_permissions(file.path(), Permissions::from_mode(mode)).expect("the file is ours");
        file
    }

    #[test]
    fn a_url_where_a_path_belongs_is_not_repeated() {
        let error = bytes(Path::new("postgres://u:hunter2@db/app")).expect_err("no such file");
        let said = error.to_string();
        assert!(
            !said.contains("hunter2") && said.contains("a URL"),
            "{said}"
        );
        let error = bytes(Path::new("/no/such/file")).expect_err("no such file");
        assert!(
            error
                .to_string()
                .starts_with("/no/such/file cannot be read")
        );
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_the_secret() {
        for (content, expected) in [
            ("a b", "a b"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
        ] {
            let file = file(content.as_bytes(), 0o640);
            let secret = read(file.path()).expect("a usable secret");
            assert_eq!(secret.expose_secret(), expected);
        }
    }

    #[test]
    fn unusable_secret_files_are_refused_with_the_reason() {
        let message = |path: &Path| {
            let error = read(path).expect_err("the file is unusable").to_string();
            error.replace(&*path.to_string_lossy(), "FILE")
        };
        assert_eq!(
            message(file(b"hunter2", 0o644).path()),
            "FILE is readable by everyone (mode 0644)"
        );
        assert_eq!(message(file(b"\n", 0o600).path()), "FILE is empty");
        assert_eq!(
            message(file(&[0xff], 0o600).path()),
            "FILE is not UTF-8 text"
        );
        let largest = file(&vec![b'a'; 1 << 20], 0o600);
        assert!(read(largest.path()).is_ok());
        assert_eq!(
            message(file(&vec![b'a'; (1 << 20) + 1], 0o600).path()),
            "FILE is larger than 1024 KiB"
        );
        assert_eq!(
            message(Path::new("/nowhere/secret")),
            "FILE cannot be read: no such file"
        );
        assert_eq!(message(Path::new("/proc")), "FILE is not a regular file");
    }

    #[test]
    fn certificates_are_looked_for() {
        assert!(
            check_certificates(file(b"x\n-----BEGIN CERTIFICATE-----\n", 0o644).path()).is_ok()
        );
        assert!(check_certificates(file(b"x", 0o644).path()).is_err());
    }
}
