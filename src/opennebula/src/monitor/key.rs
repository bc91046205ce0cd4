//! The monitor's public key, if messages are encrypted: RSA with the padding of PKCS #1 v1.5 (RFC 8017 section 7.2), block
//! after block.
//!
//! The key is PEM: `RSA PUBLIC KEY` (RFC 8017 appendix A.1.1), or `PUBLIC KEY` around the same (RFC 5280 section 4.1).
//! Its lines may have become words on the way.
//!
//! Only what is public enters the arithmetic but for the text itself, which is sent once and in secret from nobody on
//! this host; there is no private key whose use could leak.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use num_bigint::BigUint;
use ocivisor_core::error::Result;

use crate::invalid;

/// Bits of a modulus that are accepted: less is broken, more is a mistake.
const BITS: std::ops::RangeInclusive<u64> = 1024..=16384;
/// Bits of an exponent: 65537 has 17.
const EXPONENT: std::ops::RangeInclusive<u64> = 2..=64;
/// Bytes that the padding needs of each block.
const PADDING: usize = 11;
/// OBJECT IDENTIFIER rsaEncryption.
const RSA_ENCRYPTION: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// An RSA public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    modulus: BigUint,
    exponent: BigUint,
}

impl PublicKey {
    /// Reads PEM.
    ///
    /// # Errors
    /// It is not a public key for RSA of a sane size.
    pub fn read(pem: &str) -> Result<Self> {
        let bad = || invalid("NETWORK/PUBKEY of the configuration is not an RSA public key in PEM");
        let body = |label: &str| {
            let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
            let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
            let body: String = body.split_ascii_whitespace().collect();
            STANDARD.decode(body).ok()
        };
        let key = match (body("RSA PUBLIC KEY"), body("PUBLIC KEY")) {
            (Some(der), _) => numbers(&der),
            (None, Some(der)) => wrapped(&der).and_then(numbers),
            (None, None) => None,
        };
        key.filter(|key| {
            BITS.contains(&key.modulus.bits()) && EXPONENT.contains(&key.exponent.bits())
        })
        .ok_or_else(bad)
    }

    fn size(&self) -> usize {
        usize::try_from(self.modulus.bits().div_ceil(8)).unwrap_or(usize::MAX)
    }

    /// Encrypts, each block with a padding of its own.
    ///
    /// # Errors
    /// What `random` says.
    pub fn encrypt(
        &self,
        text: &[u8],
        random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let size = self.size();
        let mut all = Vec::with_capacity(text.len() / (size - PADDING) * size + size);
        for part in text.chunks(size - PADDING) {
            let mut block = vec![0; size - part.len() - 1];
            block[1] = 2;
            fill_without_zeros(&mut block[2..], random)?;
            block.push(0);
            block.extend_from_slice(part);
            let number = BigUint::from_bytes_be(&block).modpow(&self.exponent, &self.modulus);
            let bytes = number.to_bytes_be();
            all.resize(all.len() + size - bytes.len(), 0);
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

fn fill_without_zeros(
    bytes: &mut [u8],
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<()> {
    random(bytes)?;
    for byte in bytes {
        while *byte == 0 {
            random(std::slice::from_mut(byte))?;
        }
    }
    Ok(())
}

/// `SEQUENCE { modulus INTEGER, publicExponent INTEGER }`
fn numbers(der: &[u8]) -> Option<PublicKey> {
    let (inner, []) = element(der, 0x30)? else { return None };
    let (modulus, rest) = element(inner, 0x02)?;
    let (exponent, []) = element(rest, 0x02)? else { return None };
    let number = BigUint::from_bytes_be;
    Some(PublicKey { modulus: number(modulus), exponent: number(exponent) })
}

/// `SEQUENCE { SEQUENCE { rsaEncryption, NULL }, BIT STRING }`
fn wrapped(der: &[u8]) -> Option<&[u8]> {
    let (inner, []) = element(der, 0x30)? else { return None };
    let (algorithm, rest) = element(inner, 0x30)?;
    let (name, _) = element(algorithm, 0x06)?;
    let (bits, []) = element(rest, 0x03)? else { return None };
    // The first byte of a bit string says how many bits of its last one do not count.
    bits.strip_prefix(&[0]).filter(|_| name == RSA_ENCRYPTION)
}

/// The content of the first element, which must have that tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[first, length], rest) = der.split_first_chunk()?;
    let (length, rest) = match length {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length).filter(|_| first == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made for this test by openssl(1): genrsa 1024.
    const PKCS1: &str = include_str!("testdata/pkcs1.pem");
    const SPKI: &str = include_str!("testdata/spki.pem");
    /// The private exponent, in hexadecimal.
    const PRIVATE: &str = include_str!("testdata/private.hex");

    fn counting() -> impl FnMut(&mut [u8]) -> Result<()> {
        let mut next = 0_u8;
        move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
            Ok(())
        }
    }

    /// What the owner of the private key does.
    fn decrypt(key: &PublicKey, bytes: &[u8]) -> Vec<u8> {
        let private = BigUint::parse_bytes(PRIVATE.trim().as_bytes(), 16).unwrap();
        let mut text = Vec::new();
        for block in bytes.chunks(key.size()) {
            let plain = BigUint::from_bytes_be(block).modpow(&private, &key.modulus).to_bytes_be();
            assert_eq!((plain[0], plain.len()), (2, key.size() - 1));
            let end = plain.iter().position(|byte| *byte == 0).unwrap();
            assert!(end > 8);
            text.extend_from_slice(&plain[end + 1..]);
        }
        text
    }

    #[test]
    fn blocks_come_back_with_the_private_key() {
        let key = PublicKey::read(PKCS1).unwrap();
        for length in [0_usize, 1, 116, 117, 118, 1000] {
            let text: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let bytes = key.encrypt(&text, &mut counting()).unwrap();
            assert_eq!(bytes.len(), length.div_ceil(117) * 128);
            assert_eq!(decrypt(&key, &bytes), text);
        }
    }

    #[test]
    fn both_forms_are_read_also_when_lines_became_words() {
        let key = PublicKey::read(PKCS1).unwrap();
        assert_eq!(PublicKey::read(SPKI).unwrap(), key);
        assert_eq!(PublicKey::read(&PKCS1.replace('\n', " ")).unwrap(), key);
        let cut = format!("{}-----END RSA PUBLIC KEY-----", &PKCS1[..80]);
        for bad in
            ["", "x", &PKCS1[..90], &cut, "-----BEGIN PUBLIC KEY----------END PUBLIC KEY-----"]
        {
            assert!(PublicKey::read(bad).is_err(), "{bad}");
        }
    }
}
