//! Exact arithmetic on single numbers, within bounds.

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

use super::{Normal, NormalError};

/// Largest numerator or denominator, in bits.
const MAX_BITS: u64 = 8192;
/// Largest factorial and binomial argument.
const MAX_FACTORIAL: u32 = 500;
/// Trial divisors when roots are simplified; a remainder below its square is prime.
pub(super) const MAX_DIVISOR: u32 = 1000;

/// The work of one operation on a number, where a small one costs 1: reducing a fraction takes time
/// quadratic in its bits, about a millisecond at the limit.
pub(super) fn cost(value: &BigRational) -> Normal<usize> {
    let bits = value.numer().bits().max(value.denom().bits());
    if bits > MAX_BITS {
        return Err(NormalError::Budget("a number of more than 8192 bits"));
    }
    Ok(1 + (bits as usize / 200).pow(2))
}

/// `left · right`. The library reduces every product by greatest common divisors, also those of whole numbers,
/// where the divisor is 1 and finding it takes longer than the product.
pub(super) fn product(left: &BigRational, right: &BigRational) -> BigRational {
    if left.is_integer() && right.is_integer() {
        return BigRational::from_integer(left.numer() * right.numer());
    }
    left * right
}

/// Adds `value` to `total`, as [`product`] multiplies.
pub(super) fn add_to(total: &mut BigRational, value: BigRational) {
    if total.is_integer() && value.is_integer() {
        *total = BigRational::from_integer(total.numer() + value.numer());
    } else {
        *total += value;
    }
}

/// A power of a bounded size.
pub(super) fn power_of(base: &BigRational, power: u32) -> Normal<BigRational> {
    let bits = base.numer().bits().max(base.denom().bits());
    // 0 and ±1 stay small at any power.
    if bits > 1 && bits.saturating_mul(u64::from(power)) > MAX_BITS {
        return Err(NormalError::Budget("a power of more than 8192 bits"));
    }
    let power = if bits <= 1 { power % 2 + 2 * u32::from(power > 0) } else { power };
    Ok(Pow::pow(base, power))
}

/// `n` as a product of powers: primes by trial division, then what is left, as a perfect power where it is one.
pub(super) fn factors(mut n: BigInt, degree: u32) -> Vec<(BigInt, u32)> {
    if n.is_zero() {
        return vec![(n, degree)];
    }
    let mut out = Vec::new();
    for divisor in std::iter::once(2).chain((3..=MAX_DIVISOR).step_by(2)) {
        let divisor = BigInt::from(divisor);
        if &divisor * &divisor > n {
            break;
        }
        let mut power = 0;
        while (&n % &divisor).is_zero() {
            n /= &divisor;
            power += 1;
        }
        if power > 0 {
            out.push((divisor, power));
        }
    }
    if !n.is_one() {
        let root = n.nth_root(degree);
        if Pow::pow(&root, degree) == n { out.push((root, degree)) } else { out.push((n, 1)) }
    }
    out
}

/// Functions with exact values on rationals; `None` where there is no exact rule.
pub(super) fn exact_call(name: &str, arguments: &[BigRational]) -> Normal<Option<BigRational>> {
    let small = |value: &BigRational| value.is_integer().then(|| value.to_integer().to_u32()).flatten();
    let wholes = || arguments.iter().map(|a| a.is_integer().then(|| a.to_integer())).collect::<Option<Vec<_>>>();
    Ok(match (name, arguments) {
        ("abs", [x]) => Some(x.abs()),
        ("floor", [x]) => Some(x.floor()),
        ("ceil", [x]) => Some(x.ceil()),
        ("factorial", [x]) => match small(x) {
            Some(n) if n <= MAX_FACTORIAL => Some(BigRational::from_integer((1..=n).map(BigInt::from).product())),
            _ => None,
        },
        ("binomial", [n, k]) => match (small(n), small(k)) {
            (Some(n), Some(k)) if n <= MAX_FACTORIAL => Some(BigRational::from_integer(binomial(n, k))),
            _ => None,
        },
        ("mod", [x, n]) if !n.is_zero() => Some(x - n * (x / n).floor()),
        ("gcd", [_, _, ..]) => wholes().map(|n| BigRational::from_integer(n.iter().fold(0.into(), |a, b| b.gcd(&a)))),
        ("lcm", [_, _, ..]) => {
            let mut total = BigInt::one();
            let Some(numbers) = wholes() else { return Ok(None) };
            for number in numbers {
                total = total.lcm(&number);
                if total.bits() > MAX_BITS {
                    return Err(NormalError::Budget("a number of more than 8192 bits"));
                }
            }
            Some(BigRational::from_integer(total))
        }
        ("max", [_, _, ..]) => arguments.iter().max().cloned(),
        ("min", [_, _, ..]) => arguments.iter().min().cloned(),
        ("log" | "ln", [x]) if x.is_one() => Some(BigRational::zero()),
        _ => None,
    })
}

/// `n (n-1) ... (n-k+1) / k!`, dividing as it goes, which is exact at every step.
fn binomial(n: u32, k: u32) -> BigInt {
    if k > n {
        return BigInt::zero();
    }
    (1..=k.min(n - k)).fold(BigInt::one(), |total, i| total * (n - k.min(n - k) + i) / i)
}
