//! Public keys in PEM (RFC 7468) as cosign and openssl write them: a `SubjectPublicKeyInfo` of RFC 5280.
//!
//! cosign makes ECDSA keys on P-256; P-384, Ed25519 and RSA are what else it signs with. The digest is SHA-256 for
//! all but Ed25519, which signs the document itself.

use base64::Engine as _;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};

/// A key that signatures can be checked with.
pub(super) struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    /// A point for elliptic curves, an `RSAPublicKey` for RSA.
    bytes: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

// The content of AlgorithmIdentifier: RFC 5480 §2.1.1, RFC 8410 §3, RFC 3279 §2.3.1.
const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const P384: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";
const EDWARDS: &[u8] = b"\x06\x03\x2b\x65\x70";
const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";

impl PublicKey {
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(pem).map_err(|_| "it is not PEM")?.trim();
        let body = text
            .strip_prefix(BEGIN)
            .and_then(|t| t.strip_suffix(END))
            .filter(|t| !t.contains("-----"))
            .ok_or("it is not one public key in PEM")?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD
            .decode(body)
            .map_err(|e| format!("it is not PEM: {e}"))?;
        Self::from_info(&der).ok_or_else(|| {
            "it is none of ECDSA P-256, ECDSA P-384, Ed25519 and RSA of 2048 bits or more".into()
        })
    }

    fn from_info(der: &[u8]) -> Option<Self> {
        let info = whole(der, 0x30)?;
        let (algorithm, rest) = element(info, 0x30)?;
        // BIT STRING: the first byte counts unused bits.
        let (0, bytes) = whole(rest, 0x03)?.split_first().map(|(unused, b)| (*unused, b))? else {
            return None;
        };
        let algorithm: &'static dyn VerificationAlgorithm = match algorithm {
            P256 => &ECDSA_P256_SHA256_ASN1,
            P384 => &ECDSA_P384_SHA256_ASN1,
            EDWARDS => &ED25519,
            // ring refuses shorter ones when it verifies; to say so beforehand is kinder.
            RSA if bytes.len() >= 256 => &RSA_PKCS1_2048_8192_SHA256,
            _ => return None,
        };
        Some(Self { algorithm, bytes: bytes.to_vec() })
    }

    pub fn verifies(&self, document: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(document, signature).is_ok()
    }
}

/// The content of the one DER element there is.
fn whole(der: &[u8], tag: u8) -> Option<&[u8]> {
    element(der, tag).filter(|(_, rest)| rest.is_empty()).map(|(content, _)| content)
}

/// The content of a DER element (X.690 §8.1), and what comes after it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    (*found == tag).then(|| rest.split_at_checked(length)).flatten()
}
