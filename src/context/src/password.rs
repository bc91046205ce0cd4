//! Passwords as shadow(5) keeps them: SHA-512-crypt, crypt(5).
//!
//! yescrypt is stronger and the default of some distributions, but the crypt(3) of others (musl's, so Alpine's and
//! busybox's) cannot read it: a password that nobody can log in with is the weaker choice. More rounds make up.

use ocivisor_core::error::{Error, ErrorKind, Result};
use sha_crypt::{
    Algorithm, CustomizedPasswordHasher, Params, PasswordHash, PasswordVerifier, ShaCrypt,
};
use uuid::Uuid;

/// Some hundredths of a second of a processor, for whoever logs in and for whoever guesses.
const ROUNDS: u32 = 50_000;

/// Hashes a password with a salt of its own.
///
/// # Errors
/// Never for what a context can hold; the library's types are fallible.
pub fn hash(plain: &str) -> Result<String> {
    let failed =
        |e: &dyn std::fmt::Display| Error::new(ErrorKind::Host, format!("hash a password: {e}"));
    // Twelve bytes become the sixteen characters that are used; of a UUID all of these are random.
    let random = Uuid::new_v4().into_bytes();
    let salt = [&random[..6], &random[9..15]].concat();
    let params = Params::new(ROUNDS).map_err(|e| failed(&e))?;
    let hasher = ShaCrypt::new(Algorithm::Sha512Crypt, params);
    let hashed = hasher.hash_password_customized(plain.as_bytes(), &salt, None, None, params);
    Ok(hashed.map_err(|e| failed(&e))?.as_str().to_owned())
}

/// Whether that hash, one of ours, is of this password.
#[must_use]
pub fn is_hash_of(crypted: &str, plain: &str) -> bool {
    // What the guest may have put in its place must not cost more than ours.
    let ours = crypted.starts_with(&format!("$6$rounds={ROUNDS}$")) && crypted.len() < 200;
    ours && PasswordHash::new(crypted)
        .is_ok_and(|hash| ShaCrypt::default().verify_password(plain.as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_salted_and_recognised() {
        let (one, other) = (hash("secret").unwrap(), hash("secret").unwrap());
        assert_ne!(one, other);
        assert!(one.starts_with("$6$rounds=50000$") && !one.contains(':'), "{one}");
        assert!(is_hash_of(&one, "secret") && is_hash_of(&other, "secret"));
        assert!(!is_hash_of(&one, "Secret") && !is_hash_of(&one, ""));
        for foreign in ["", "*", "!", "$6$rounds=999999999$abc$def", "$y$j9T$x$y"] {
            assert!(!is_hash_of(foreign, "secret"), "{foreign}");
        }
    }

    /// Known answer: glibc's crypt(3) of the same.
    #[test]
    fn hashes_are_those_of_crypt() {
        let known = "$6$rounds=50000$abcdefgh$fyVyaPA5JZ7h8JygHBw0jCk5V2t4cwFPLy/dlzSUyA7reKyNNPiczYvO9.vQpmbV7SEwQjzgcXtTihjTO2qzE/";
        assert!(is_hash_of(known, "ocivisor pässword"));
    }
}
