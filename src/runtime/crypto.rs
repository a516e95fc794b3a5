//! The cryptography below TLS, the same towards clients and upstreams.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// What rustls computes with: aws-lc, whose key exchanges include the post-quantum ones, with the ciphers of whichever
/// library makes the better use of this processor.
///
/// aws-lc has AES-GCM for AVX-512 and for plain AES instructions, ring also for the VAES of processors without AVX-512
/// (AMD's Zen 3, Intel's desktops). There, sealing records of 16 KiB with AES-128-GCM takes ring 0.28 CPU-s/GiB and aws-lc
/// 0.56 (AMD EPYC of the third generation).
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        if has_wide_aes_without_avx512() {
            provider.cipher_suites = ring::default_provider().cipher_suites;
        }
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

#[cfg(target_arch = "x86_64")]
fn has_wide_aes_without_avx512() -> bool {
    let has_wide_aes = is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2");
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    has_wide_aes && !has_avx512
}

#[cfg(not(target_arch = "x86_64"))]
fn has_wide_aes_without_avx512() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::SupportedCipherSuite;

    #[test]
    fn the_suites_and_their_order_are_the_same_whoever_computes_them() {
        let suites = |provider: &CryptoProvider| -> Vec<_> {
            provider.cipher_suites.iter().map(SupportedCipherSuite::suite).collect()
        };
        let expected = suites(&aws_lc_rs::default_provider());
        assert_eq!(suites(&ring::default_provider()), expected);
        assert_eq!(suites(&crypto_provider()), expected);
    }
}
