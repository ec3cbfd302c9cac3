/* Decoding in float32 on CPUs: what a step does to a few rows, in a handful of calls per layer.
 *
 * `native.py` compiles this file for the processor at hand and documents what each function
 * guarantees; the arithmetic is that of fused.py and prefix_state.attend_cpu. All tensors are
 * contiguous. GCC's and Clang's vector extensions are used, no intrinsics.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef LANES /* numbers in a vector; given where a test wants another width than the processor's */
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define ROWS 4   /* times COLS: the accumulators of a block, which have to fit the registers */
#define COLS 3
#define LINE 16   /* numbers in a line of the caches */
#define NEAR 6144 /* weights, 24 KB, that stay in the first-level cache beside a few rows */
#define QUERIES 16 /* whose scores are kept at one time */
#define CHUNK 256  /* keys per unit of work: their values stay in the second-level cache */
#define SMALL 32768 /* numbers that one thread is done with before a second has begun */
#define INLINE static inline __attribute__((always_inline))
#if LANES == 8 || defined __AVX512F__
#define KEEP(value) __asm__("" : "+v"(value)) /* in a register, instead of loading it at every use */
#else
#define KEEP(value)
#endif
#if defined __clang__ || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *from)
{
    vec out;
    memcpy(&out, from, sizeof out);
    return out;
}

INLINE void store(float *to, vec value) { memcpy(to, &value, sizeof value); }

INLINE vec all(float value) { return value - (vec){0}; }

INLINE float total(vec value)
{
    float parts[LANES];
    memcpy(parts, &value, sizeof parts);
#if LANES == 16
    UNROLL for (int i = 0; i < 8; i++) parts[i] += parts[i + 8];
#endif
    UNROLL for (int i = 0; i < 4; i++) parts[i] += parts[i + 4];
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
}

#if LANES == 16
#define PAIRS(a, b, o)                                                                            \
    SHUFFLE(a, b, o, o + 2, o + 16, o + 18, o + 4, o + 6, o + 20, o + 22, o + 8, o + 10, o + 24,  \
            o + 26, o + 12, o + 14, o + 28, o + 30)
#else
#define PAIRS(a, b, o) SHUFFLE(a, b, o, o + 2, o + 8, o + 10, o + 4, o + 6, o + 12, o + 14)
#endif

/* sums of four neighbours within each quarter of two vectors at a time, as AVX adds them */
INLINE vec pairs(vec a, vec b) { return PAIRS(a, b, 0) + PAIRS(a, b, 1); }

/* the totals of four vectors: adding vectors to each other takes a third of adding within each */
INLINE void totals(vec a, vec b, vec c, vec d, float out[4])
{
    vec quarters = pairs(pairs(a, b), pairs(c, d));
    float parts[LANES];
    memcpy(parts, &quarters, sizeof parts);
    UNROLL for (int i = 0; i < 4; i++)
    {
        out[i] = parts[i] + parts[i + 4];
#if LANES == 16
        out[i] += parts[i + 8] + parts[i + 12];
#endif
    }
}

INLINE vec larger(vec a, vec b)
{
    ivec first = a > b;
    return (vec)((first & (ivec)a) | (~first & (ivec)b));
}

/* e to the power of value, relative error below 2e-7; from e^-87 to e^88 */
INLINE vec exponential(vec value)
{
    const vec least = all(-87.0f), most = all(88.0f), magic = all(12582912.0f);
    value = larger(least, value);
    value = -larger(-most, -value);
    vec shifted = value * 1.44269504089f + magic; /* rounds to an integer in the last bits */
    ivec power = (ivec)shifted - (ivec)magic;
    vec whole = shifted - magic;
    vec rest = (value - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vec sum = all(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    vec power_of_two = (vec)((power + 127) << 23);
    return (sum * rest * rest + rest + 1.0f) * power_of_two;
}

/* ---- products ------------------------------------------------------------------------------- */

/* sums[r][c] = x[r] . w[c] for up to ROWS by COLS rows, whose numbers are constants where called */
INLINE void block(const float *x, long x_step, const float *w, long w_step, long size, int rows,
                  int cols, const float *ahead, float sums[ROWS][COLS])
{
    vec acc[ROWS][COLS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < cols; c++) acc[r][c] = (vec){0};
    long i = 0;
    for (; i + LANES <= size; i += LANES) {
        vec columns[COLS];
        UNROLL for (int c = 0; c < cols; c++) {
            columns[c] = load(w + c * w_step + i);
            KEEP(columns[c]);
        }
        if (ahead) __builtin_prefetch(ahead + i * (LINE / LANES));
        UNROLL for (int r = 0; r < rows; r++) {
            vec row = load(x + r * x_step + i);
            KEEP(row);
            UNROLL for (int c = 0; c < cols; c++) acc[r][c] += row * columns[c];
        }
    }
    UNROLL for (int c = 0; c < cols; c++) {
        float column[4];
        totals(acc[0][c], acc[rows > 1 ? 1 : 0][c], acc[rows > 2 ? 2 : 0][c],
               acc[rows > 3 ? 3 : 0][c], column);
        UNROLL for (int r = 0; r < rows; r++) sums[r][c] = column[r];
    }
    for (; i < size; i++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < cols; c++)
                sums[r][c] += x[r * x_step + i] * w[c * w_step + i];
}

INLINE void some_rows(const float *x, long x_step, const float *w, long w_step, long size,
                      int rows, int cols, const float *ahead, float sums[ROWS][COLS])
{
    switch (rows) {
    case 1: block(x, x_step, w, w_step, size, 1, cols, ahead, sums); break;
    case 2: block(x, x_step, w, w_step, size, 2, cols, ahead, sums); break;
    case 3: block(x, x_step, w, w_step, size, 3, cols, ahead, sums); break;
    default: block(x, x_step, w, w_step, size, ROWS, cols, ahead, sums);
    }
}

static void product(const float *x, long x_step, const float *w, long w_step, long size, int rows,
                    int cols, const float *ahead, float sums[ROWS][COLS])
{
    switch (cols) {
    case 1: some_rows(x, x_step, w, w_step, size, rows, 1, NULL, sums); break;
    case 2: some_rows(x, x_step, w, w_step, size, rows, 2, NULL, sums); break;
    default:
        if (ahead)
            some_rows(x, x_step, w, w_step, size, rows, COLS, ahead, sums);
        else
            some_rows(x, x_step, w, w_step, size, rows, COLS, NULL, sums);
    }
}

INLINE int least(long a, long b) { return (int)(a < b ? a : b); }

enum { PLAIN, SILU, TIMES, PLUS };

INLINE vec finished(vec value, const float *other, int kind)
{
    if (kind == SILU) return value / (exponential(-value) + 1.0f);
    if (kind == TIMES) return value * load(other);
    return value + load(other);
}

static void finish(float *y, const float *other, long count, int kind)
{
    long i = 0;
    for (; i + LANES <= count; i += LANES) store(y + i, finished(load(y + i), other + i, kind));
    if (i == count) return;
    float last[2][LANES] = {{0}};
    memcpy(last[0], y + i, (count - i) * sizeof *y);
    if (kind != SILU) memcpy(last[1], other + i, (count - i) * sizeof *y);
    store(last[0], finished(load(last[0]), last[1], kind));
    memcpy(y + i, last[0], (count - i) * sizeof *y);
}

void cahl_linear(const float *x, const float *w, const float *bias, const float *other, float *y,
                 long rows, long size, long cols, int kind, int threads)
{
    /* as many weights as stay near serve all rows before the next are read */
    long strip = NEAR / (COLS * size) > 1 ? NEAR / (COLS * size) * COLS : COLS;
    long strips = (cols + strip - 1) / strip;
#pragma omp parallel num_threads(threads) if (rows * size * cols > SMALL)
    {
        long first = cols, last = 0; /* of the columns that this thread computes */
#pragma omp for schedule(static) nowait
        for (long b = 0; b < strips; b++) {
            long start = b * strip, stop = start + strip < cols ? start + strip : cols;
            if (start < first) first = start;
            last = stop;
            /* meanwhile the next strip is fetched: some of it with every block */
            const float *ahead = w + stop * size;
            const float *end = w + (stop + strip < cols ? stop + strip : cols) * size;
            for (long r = 0; r < rows; r += ROWS)
                for (long c = start; c < stop; c += COLS) {
                    float sums[ROWS][COLS];
                    int n = least(rows - r, ROWS), m = least(stop - c, COLS);
                    product(x + r * size, size, w + c * size, size, size, n, m,
                            ahead < end ? ahead : NULL, sums);
                    ahead += size / LANES * LINE;
                    for (int i = 0; i < n; i++)
                        for (int j = 0; j < m; j++)
                            y[(r + i) * cols + c + j] = sums[i][j] + (bias ? bias[c + j] : 0.0f);
                }
        }
        if (kind != PLAIN && first < last)
            for (long r = 0; r < rows; r++)
                finish(y + r * cols + first, other ? other + r * cols + first : y, last - first,
                       kind);
    }
}

/* ---- norms and positions -------------------------------------------------------------------- */

static void normalise(const float *x, const float *weight, float *y, long size, float eps)
{
    float squares = 0.0f;
    vec acc = {0};
    long i = 0;
    for (; i + LANES <= size; i += LANES) acc += load(x + i) * load(x + i);
    squares = total(acc);
    for (; i < size; i++) squares += x[i] * x[i];
    float factor = 1.0f / sqrtf(squares / (float)size + eps);
    for (i = 0; i < size; i++) y[i] = x[i] * factor * weight[i];
}

void cahl_rms_norm(const float *x, const float *weight, float *y, long rows, long size, float eps,
                   int threads)
{
#pragma omp parallel for num_threads(threads) if (rows * size > SMALL)
    for (long r = 0; r < rows; r++) normalise(x + r * size, weight, y + r * size, size, eps);
}

static void turn(const float *x, const float *cosine, const float *sine, float *y, long width,
                 float scale)
{
    long half = width / 2;
    for (long i = 0; i < half; i++) {
        y[i] = (x[i] * cosine[i] + x[i + half] * sine[i]) * scale;
        y[i + half] = (x[i + half] * cosine[i + half] + x[i] * sine[i + half]) * scale;
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

/* acc[r] = sum over keys of p[r][key] v[key], for a few rows and 2 LANES of the width */
INLINE void weighed(const float *p, const float *values, long count, long width, int rows,
                    float *acc)
{
    vec sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
    for (long j = 0; j < count; j++) {
        vec a = load(values + j * width), b = load(values + j * width + LANES);
        KEEP(a);
        KEEP(b);
        UNROLL for (int r = 0; r < rows; r++) {
            vec weight = all(p[r * CHUNK + j]);
            sums[r][0] += weight * a;
            sums[r][1] += weight * b;
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        store(acc + r * width, sums[r][0]);
        store(acc + r * width + LANES, sums[r][1]);
    }
}

/* The largest score, the sum of e^(score - largest) and the values weighed by it, of some keys */
static void part(const float *query, const float *keys, const float *values, long rows, long count,
                 long width, float *largest, float *sum, float *acc)
{
    float p[QUERIES * CHUNK];
    for (long start = 0; start < rows; start += QUERIES) {
        int n = least(rows - start, QUERIES);
        const float *q = query + start * width;
        for (long j = 0; j < count; j += COLS)
            for (int r = 0; r < n; r += ROWS) {
                float sums[ROWS][COLS];
                int some = least(n - r, ROWS), cols = least(count - j, COLS);
                product(q + r * width, width, keys + j * width, width, width, some, cols, NULL, sums);
                for (int i = 0; i < some; i++)
                    for (int c = 0; c < cols; c++) p[(r + i) * CHUNK + j + c] = sums[i][c];
            }
        long padded = (count + LANES - 1) / LANES * LANES;
        for (int r = 0; r < n; r++) {
            float *scores = p + r * CHUNK, parts[LANES];
            /* what stands in for keys adds e^-87 to a sum of at least 1 */
            for (long j = count; j < padded; j++) scores[j] = -INFINITY;
            vec high = load(scores);
            for (long j = LANES; j < padded; j += LANES) high = larger(high, load(scores + j));
            memcpy(parts, &high, sizeof parts);
            float most = parts[0];
            for (int i = 1; i < LANES; i++) most = fmaxf(most, parts[i]);
            vec sums = {0};
            for (long j = 0; j < padded; j += LANES) {
                vec weights = exponential(load(scores + j) - most);
                store(scores + j, weights);
                sums += weights;
            }
            largest[start + r] = most;
            sum[start + r] = total(sums);
        }
        for (long d = 0; d < width; d += 2 * LANES)
            for (int r = 0; r < n; r += ROWS) {
                float *to = acc + (start + r) * width + d;
                switch (least(n - r, ROWS)) {
                case 1: weighed(p + r * CHUNK, values + d, count, width, 1, to); break;
                case 2: weighed(p + r * CHUNK, values + d, count, width, 2, to); break;
                case 3: weighed(p + r * CHUNK, values + d, count, width, 3, to); break;
                default: weighed(p + r * CHUNK, values + d, count, width, ROWS, to);
                }
            }
    }
}

typedef struct {
    const float *query, *keys, *values;
    long rows, count;
    float *largest, *sum, *acc;
} unit;

/* One layer of one step. Returns 0, or 1 where memory is short. */
int cahl_attend(const float *qkv, const float *cosine, const float *sine, const float *query_norm,
                const float *key_norm, float eps, const float *keys, const float *values,
                const int64_t *lengths, float *own_keys, float *own_values, float *out,
                long prompts, long samples, long groups, long heads, long width, long longest,
                long room, long written, float scale, int threads)
{
    long rows = prompts * samples, each = (groups + 2) * heads * width, shared = samples * groups;
    long own_chunks = (written + CHUNK - 1) / CHUNK, count = rows * heads * own_chunks;
    long partial = count * groups;
    for (long p = 0; p < prompts; p++) {
        long chunks = (lengths[p] + CHUNK - 1) / CHUNK;
        count += heads * chunks;
        partial += heads * chunks * shared;
    }
    long queries = rows * groups * heads;
    float *memory = malloc((queries * width + partial * (width + 2)) * sizeof *memory);
    unit *units = malloc(count * sizeof *units);
    long *first = malloc((prompts + 1) * sizeof *first); /* of each prompt's units */
    if (!memory || !units || !first) {
        free(memory), free(units), free(first);
        return 1;
    }
    float *turned = memory, *acc = memory + queries * width, *largest = acc + partial * width,
          *sum = largest + partial;
    unit *next = units;
#define UNIT(q, k, v, number, n)                                                                  \
    {                                                                                             \
        *next++ = (unit){q, k, v, number, n, largest, sum, acc};                                  \
        largest += number, sum += number, acc += number * width;                                  \
    }
    for (long p = 0; p < prompts; p++) {
        first[p] = next - units;
        for (long h = 0; h < heads; h++)
            for (long from = 0; from < lengths[p]; from += CHUNK) {
                long at = ((p * heads + h) * longest + from) * width;
                UNIT(turned + (p * heads + h) * shared * width, keys + at, values + at, shared,
                     least(lengths[p] - from, CHUNK))
            }
    }
    first[prompts] = next - units;
    for (long n = 0; n < rows; n++)
        for (long h = 0; h < heads; h++)
            for (long from = 0; from < written; from += CHUNK) {
                long at = ((n * heads + h) * room + from) * width;
                long row = (n / samples * heads + h) * shared + n % samples * groups;
                UNIT(turned + row * width, own_keys + at, own_values + at, groups,
                     least(written - from, CHUNK))
            }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long n = 0; n < rows; n++) {
            const float *from = qkv + n * each, *c = cosine + n * width, *s = sine + n * width;
            float normal[width];
            for (long i = 0; i < (groups + 1) * heads; i++) {
                const float *x = from + i * width;
                long h = i % heads, g = i / heads, is_key = g == groups;
                const float *norm = is_key ? key_norm : query_norm;
                if (norm) normalise(x, norm, normal, width, eps), x = normal;
                long row = (n / samples * heads + h) * shared + n % samples * groups + g;
                float *to = is_key ? own_keys + ((n * heads + h) * room + written - 1) * width
                                   : turned + row * width;
                turn(x, c, s, to, width, is_key ? 1.0f : scale);
            }
            for (long h = 0; h < heads; h++)
                memcpy(own_values + ((n * heads + h) * room + written - 1) * width,
                       from + ((groups + 1) * heads + h) * width, width * sizeof *from);
        }
#pragma omp for schedule(dynamic, 1)
        for (long u = 0; u < count; u++) {
            unit *x = units + u;
            part(x->query, x->keys, x->values, x->rows, x->count, width, x->largest, x->sum,
                 x->acc);
        }
#pragma omp for schedule(static) collapse(2)
        for (long n = 0; n < rows; n++)
            for (long h = 0; h < heads; h++)
                for (long g = 0; g < groups; g++) {
                    long p = n / samples, own = first[prompts] + (n * heads + h) * own_chunks;
                    long chunks = (first[p + 1] - first[p]) / heads;
                    unit *parts[2] = {units + first[p] + h * chunks, units + own};
                    long numbers[2] = {chunks, own_chunks};
                    long at[2] = {n % samples * groups + g, g};
                    float most = -INFINITY, whole = 0.0f;
                    float *to = out + (n * groups * heads + g * heads + h) * width;
                    for (int i = 0; i < 2; i++)
                        for (long u = 0; u < numbers[i]; u++)
                            most = fmaxf(most, parts[i][u].largest[at[i]]);
                    memset(to, 0, width * sizeof *to);
                    for (int i = 0; i < 2; i++)
                        for (long u = 0; u < numbers[i]; u++) {
                            unit *x = parts[i] + u;
                            float share = expf(x->largest[at[i]] - most);
                            whole += share * x->sum[at[i]];
                            for (long d = 0; d < width; d++)
                                to[d] += share * x->acc[at[i] * width + d];
                        }
                    for (long d = 0; d < width; d++) to[d] /= whole;
                }
    }
    free(memory), free(units), free(first);
    return 0;
}
