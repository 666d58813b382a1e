/* Dot products of vectors of signs, 64 entries a word: the kernel behind itrd.export.packed.
 *
 * a, v (rows, words): bit 1 of a stands for +1 and bit 0 for -1 where v has bit 1; entries without it are zero.
 * w (words, filters): the same of the weights, none of which is zero.
 * out (rows, filters): sum of a * w = valid entries - 2 * entries that differ.
 *
 * Filters lie side by side, so that the innermost loop is one of vector instructions however few words there are; a
 * block of them has its counts in registers.
 */
#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 16 };

void itrd_packed_dots(const uint64_t *restrict a, const uint64_t *restrict v, const uint64_t *restrict w,
                      float *restrict out, size_t rows, size_t words, size_t filters)
{
    for (size_t r = 0; r < rows; r++, a += words, v += words, out += filters) {
        int64_t valid = 0;
        for (size_t k = 0; k < words; k++)
            valid += __builtin_popcountll(v[k]);
        for (size_t f = 0; f < filters; f += BLOCK) {
            const size_t n = filters - f < BLOCK ? filters - f : BLOCK;
            int64_t differ[BLOCK] = {0};
            for (size_t k = 0; k < words; k++)
                for (size_t j = 0; j < n; j++)
                    differ[j] += __builtin_popcountll((a[k] ^ w[k * filters + f + j]) & v[k]);
            for (size_t j = 0; j < n; j++)
                out[f + j] = (float)(valid - 2 * differ[j]);
        }
    }
}
