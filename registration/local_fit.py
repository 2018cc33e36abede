"""The surface around each pixel of a depth image: a robust local quadric, as wide as the surface allows.

A wide window averages the noise away but flattens what is curved more than a quadric: lips, ear folds, eyelids. So each
pixel takes the widest of a few windows whose quadric leaves no more than the noise behind. Where even the smallest has
too few pixels of one surface for a quadric (an edge, a narrow strip) a plane through the nearest ones stands in, at
the weight that its few pixels give it; and where even that is mixed of two surfaces (a narrow gap, the pit behind an
ear), the plane through the pixel and two of its neighbours that most others confirm.
"""

from __future__ import annotations

import numpy as np

from registration.compiled import compiled, compiled_into

MAX_DEPTH_SLOPE = 8.0
"""Depth step over sideways step beyond which two neighbouring pixels are taken as two surfaces (about 83 degrees)."""
FULL_SHARE = 0.35
"""Share of a window's pixels that must lie on the centre's surface for a quadric through them."""
PLANE_PIXELS = 5
"""So many pixels of the smallest window carry a plane where no quadric can be had."""
MISFIT = 1.35
"""A quadric whose residuals spread by more than this many times the noise is too stiff for its window."""
SUM_FREELY = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be taken in several lanes at once; infinities and NaN keep their meaning."""


def window_radii(radius: int) -> tuple[int, ...]:
    """The windows that are tried, widest first, pixels; the last also serves the plane."""
    return tuple(sorted({max(2, radius), max(2, round(0.65 * radius)), 2}, reverse=True))


@compiled
def _solve_spd(H, b, n):  # type: ignore[no-untyped-def]
    """Cholesky in place for the first ``n`` unknowns: ``b`` becomes the solution; returns the inverse's first entry,
    negative if not definite."""
    for j in range(n):
        for k in range(j):
            for i in range(j, n):
                H[i, j] -= H[i, k] * H[j, k]
        if H[j, j] < 1e-9:
            return -1.0
        root = np.sqrt(H[j, j])
        for i in range(j, n):
            H[i, j] /= root
    for i in range(n):
        for k in range(i):
            b[i] -= H[i, k] * b[k]
        b[i] /= H[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= H[k, i] * b[k]
        b[i] /= H[i, i]
    # The squared first column of the inverse factor gives the centre's variance. H's upper triangle holds it.
    total = 0.0
    for i in range(n):
        value = 1.0 if i == 0 else 0.0
        for k in range(i):
            value -= H[i, k] * H[k, 5]
        value /= H[i, i]
        if i < 5:
            H[i, 5] = value
        total += value * value
    return total


@compiled_into(fastmath=SUM_FREELY)
def _plane_moments(us, vs, ds, softs, n, out):  # type: ignore[no-untyped-def]
    """Weighted moments for a plane that leans on the depths nearest to the centre's own."""
    s1 = su = sv = suu = suv = svv = sz = suz = svz = 0.0
    for k in range(n):
        u, v, d = us[k], vs[k], ds[k]
        a = d / softs[k]
        w = 1.0 / (1.0 + a * a)
        s1 += w
        su += w * u
        sv += w * v
        suu += w * u * u
        suv += w * u * v
        svv += w * v * v
        sz += w * d
        suz += w * u * d
        svz += w * v * d
    out[0], out[1], out[2], out[3], out[4], out[5] = s1, su, sv, suu, suv, svv
    out[6], out[7], out[8] = sz, suz, svz


@compiled_into
def _first_plane(us, vs, ds, softs, n, moments, q):  # type: ignore[no-untyped-def]
    """Solve for the plane into ``q`` (6,); False where the pixels don't carry one."""
    _plane_moments(us, vs, ds, softs, n, moments)
    s1, su, sv, suu, suv, svv = moments[0], moments[1], moments[2], moments[3], moments[4], moments[5]
    sz, suz, svz = moments[6], moments[7], moments[8]
    k00 = suu * svv - suv * suv
    k01 = suv * sv - su * svv
    k02 = su * suv - suu * sv
    k12 = su * sv - s1 * suv
    det = s1 * k00 + su * k01 + sv * k02
    if det < 1e-6:
        return False
    q[:] = 0.0
    q[0] = (k00 * sz + k01 * suz + k02 * svz) / det
    q[1] = (k01 * sz + (s1 * svv - sv * sv) * suz + k12 * svz) / det
    q[2] = (k02 * sz + k12 * suz + (s1 * suu - su * su) * svz) / det
    return True


@compiled_into(fastmath=SUM_FREELY)
def _moments(us, vs, ds, n, q, soft, bend, out):  # type: ignore[no-untyped-def]
    """Moments of the pixels up to fourth order, weighted by their distance from the quadric ``q``."""
    q0, q1, q2, q3, q4, q5 = q[0], q[1], q[2], q[3], q[4], q[5]
    s = su = sv = suu = suv = svv = suuu = suuv = suvv = svvv = s40 = s31 = s22 = s13 = s04 = 0.0
    p0 = p1 = p2 = p3 = p4 = p5 = pdd = low = 0.0
    for k in range(n):
        u, v, d = us[k], vs[k], ds[k]
        uu, uv, vv = u * u, u * v, v * v
        res = d - q0 - q1 * u - q2 * v - q3 * uu - q4 * uv - q5 * vv
        a = res / (soft + bend * (uu + vv))
        t = 1.0 + a * a
        w = 1.0 / (t * t)
        low += 1.0 if w < 0.8 else 0.0
        s += w
        su += w * u
        sv += w * v
        wuu, wuv, wvv = w * uu, w * uv, w * vv
        suu += wuu
        suv += wuv
        svv += wvv
        suuu += wuu * u
        suuv += wuu * v
        suvv += wvv * u
        svvv += wvv * v
        s40 += wuu * uu
        s31 += wuu * uv
        s22 += wuu * vv
        s13 += wvv * uv
        s04 += wvv * vv
        pdd += w * d * d
        p0 += w * d
        p1 += w * u * d
        p2 += w * v * d
        p3 += wuu * d
        p4 += wuv * d
        p5 += wvv * d
    out[0], out[1], out[2], out[3], out[4], out[5] = s, su, sv, suu, suv, svv
    out[6], out[7], out[8], out[9] = suuu, suuv, suvv, svvv
    out[10], out[11], out[12], out[13], out[14] = s40, s31, s22, s13, s04
    out[15], out[16], out[17], out[18], out[19], out[20] = p0, p1, p2, p3, p4, p5
    out[21], out[22] = pdd, low


@compiled_into
def _robust_surface(us, vs, ds, n, need, unknowns, soft, bend, m, H, q):  # type: ignore[no-untyped-def]
    """Two reweighted solves from the plane in ``q`` on, for a quadric (6 unknowns) or a plane (3).

    Returns:
        The variance of the centre in units of a pixel's, negative where the pixels do not carry the surface; and the
        mean square of the weighted residuals, mm^2.
    """
    variance = left = -1.0
    for turn in range(2):
        _moments(us, vs, ds, n, q, soft, bend if turn == 0 else 0.0, m)
        if m[0] < need:
            return -1.0, 0.0
        H[0, 0], H[1, 0], H[2, 0], H[1, 1], H[2, 1], H[2, 2] = m[0], m[1], m[2], m[3], m[4], m[5]
        if unknowns == 6:
            H[3, 0], H[4, 0], H[5, 0] = m[3], m[4], m[5]
            H[3, 1], H[4, 1], H[5, 1] = m[6], m[7], m[8]
            H[3, 2], H[4, 2], H[5, 2] = m[7], m[8], m[9]
            H[3, 3], H[4, 3], H[5, 3] = m[10], m[11], m[12]
            H[4, 4], H[5, 4], H[5, 5] = m[12], m[13], m[14]
        for i in range(unknowns):
            q[i] = m[15 + i]
        variance = _solve_spd(H, q, unknowns)
        if variance < 0:
            return -1.0, 0.0
        left = m[21]
        for i in range(unknowns):
            left -= q[i] * m[15 + i]
        if m[22] == 0.0:
            break  # nothing stands out, a second turn would change nothing
    return variance, left / max(m[0] - unknowns, 1.0)


@compiled
def _confirmed_plane(us, vs, ds, n, soft, bend, q):  # type: ignore[no-untyped-def]
    """Of the planes through the centre and two pixels beside it, the one that most pixels lie on, into ``q`` (6,).

    Returns:
        How many lie on it, the three included; 0 where there is no such plane.
    """
    beside = np.full((2, 2), np.nan)  # along u and v, before and after the centre
    for k in range(n):
        if vs[k] == 0.0 and abs(us[k]) == 1.0:
            beside[0, int(us[k] > 0)] = ds[k] * us[k]
        elif us[k] == 0.0 and abs(vs[k]) == 1.0:
            beside[1, int(vs[k] > 0)] = ds[k] * vs[k]
    most = 0
    for a in range(2):
        for b in range(2):
            du, dv = beside[0, a], beside[1, b]
            if np.isnan(du) or np.isnan(dv):
                continue
            count = 0
            for k in range(n):
                miss = abs(ds[k] - du * us[k] - dv * vs[k])
                count += miss < soft + bend * (us[k] * us[k] + vs[k] * vs[k])
            if count > most:
                most = count
                q[:] = 0.0
                q[1], q[2] = du, dv
    return most


@compiled
def _within(us, vs, ds, softs, n, radius):  # type: ignore[no-untyped-def]
    """Keep the pixels of a smaller window, in place; how many there are."""
    kept = 0
    for k in range(n):
        if abs(us[k]) <= radius and abs(vs[k]) <= radius:
            us[kept], vs[kept], ds[kept], softs[kept] = us[k], vs[k], ds[k], softs[k]
            kept += 1
    return kept


@compiled
def _full_variance(radius):  # type: ignore[no-untyped-def]
    """Variance of the centre of a quadric through all of a window, in units of a pixel's."""
    m2 = m4 = m22 = 0.0
    for a in range(-radius, radius + 1):
        for b in range(-radius, radius + 1):
            m2 += a * a
            m4 += a * a * a * a
            m22 += a * a * b * b
    return 1.0 / ((2 * radius + 1) ** 2 - 2.0 * m2 * m2 / (m4 + m22))


@compiled
def fit_depth(depth_mm, region, window, radii, noise_mm, pixel_mm):  # type: ignore[no-untyped-def]
    """Fit depth(u, v) around each pixel: a plane to tell the pixel's own surface apart, then a weighted quadric.

    Args:
        depth_mm: (H, W) float32, 0 = no return.
        region: (H, W) bool, where a fit is wanted.
        window: (4,) int64 first and last+1 row, first and last+1 column of the output.
        radii: of the square windows, pixels, widest first; see ``window_radii``.
        noise_mm: spread of the depth noise.
        pixel_mm: width of a pixel on the surface.

    Returns:
        Fitted depth (h, w), slopes per pixel (h, w, 2), weight (h, w): the variance of the centre of a full widest
        window over that of this pixel's. Zero where the pixel has no support.
    """
    height, width = depth_mm.shape
    r0, r1, c0, c1 = window
    fitted = np.zeros((r1 - r0, c1 - c0), np.float32)
    slope = np.zeros((r1 - r0, c1 - c0, 2), np.float32)
    weight = np.zeros((r1 - r0, c1 - c0), np.float32)
    radius = radii[0]
    edge = 2 * radius + 1
    size = edge * edge
    us, vs, ds, softs = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    gate, lean = np.empty((edge, edge)), np.empty((edge, edge))
    for a in range(edge):
        for b in range(edge):
            reach = np.sqrt((a - radius) ** 2 + (b - radius) ** 2) * pixel_mm
            gate[a, b] = MAX_DEPTH_SLOPE * reach + 6.0 * noise_mm
            lean[a, b] = 1.5 * reach + pixel_mm + 3.0 * noise_mm
    full = _full_variance(radius)
    soft = 4.0 * noise_mm + 0.1 * pixel_mm
    bend = 0.06 * pixel_mm
    stiff = (MISFIT * noise_mm) ** 2
    H = np.zeros((6, 6))
    q = np.zeros(6)
    moments = np.zeros(23)
    for r in range(r0, r1):
        for c in range(c0, c1):
            z0 = np.float64(depth_mm[r, c])
            if z0 <= 0 or not region[r, c]:
                continue
            n = 0
            for a in range(max(-radius, -r), min(radius, height - 1 - r) + 1):
                for b in range(max(-radius, -c), min(radius, width - 1 - c) + 1):
                    z = np.float64(depth_mm[r + a, c + b])
                    d = z - z0
                    if z <= 0 or abs(d) > gate[a + radius, b + radius]:
                        continue
                    us[n], vs[n], ds[n], softs[n] = b, a, d, lean[a + radius, b + radius]
                    n += 1
            best = -1.0
            for k in range(len(radii)):
                if k > 0:
                    n = _within(us, vs, ds, softs, n, radii[k])
                need = max(8.0, FULL_SHARE * (2 * radii[k] + 1) ** 2)
                if n < need or not _first_plane(us, vs, ds, softs, n, moments, q):
                    continue
                variance, left = _robust_surface(us, vs, ds, n, need, 6, soft, bend, moments, H, q)
                # The pixel itself must lie on the surface that its neighbours describe.
                if variance <= 0 or abs(q[0]) > 2.0 * soft:
                    continue
                best = variance
                d0, du, dv = q[0], q[1], q[2]
                if left <= stiff:
                    break
            if best < 0:
                if n < PLANE_PIXELS:
                    continue
                if _first_plane(us, vs, ds, softs, n, moments, q):
                    best, _ = _robust_surface(us, vs, ds, n, PLANE_PIXELS - 0.5, 3, soft, bend, moments, H, q)
                if best < 0 or abs(q[0]) > soft:
                    if _confirmed_plane(us, vs, ds, n, soft, bend, q) < PLANE_PIXELS:
                        continue
                    best, _ = _robust_surface(us, vs, ds, n, PLANE_PIXELS - 0.5, 3, soft, 0.0, moments, H, q)
                    if best < 0 or abs(q[0]) > soft:
                        continue
                    best = max(best, 1.0)  # no more to be trusted than the pixel alone
                d0, du, dv = q[0], q[1], q[2]
            fitted[r - r0, c - c0] = z0 + d0
            slope[r - r0, c - c0, 0] = du
            slope[r - r0, c - c0, 1] = dv
            weight[r - r0, c - c0] = min(1.0, full / best)
    return fitted, slope, weight
